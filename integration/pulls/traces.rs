//! Pulls as traces, sent to a collector in this process.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::daemon::{Daemon, blocking};
use super::faulty_registry::{FaultyRegistry, Reply};
use super::images::{Layer, noise, push};

/// As much of containerd's message as is needed here, by the numbers in its `snapshots.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct PrepareSnapshotRequest {
    #[prost(string, tag = "2")]
    key: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// Asks for the one layer of an image as containerd does, from within a trace of its own.
async fn prepare(
    socket: &std::path::Path,
    image: &str,
    manifest: &str,
    layer: &Layer,
    traceparent: &'static str,
) -> tonic::Code {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix:{}", socket.display()));
    let mut client = tonic::client::Grpc::new(endpoint.unwrap().connect().await.unwrap());
    client.ready().await.unwrap();
    let digest = format!("sha256:{}", hoist::image::Sha256::of(&layer.blob).hex());
    let labels = [
        ("containerd.io/snapshot.ref", layer.diff_id.to_string()),
        ("containerd.io/snapshot/cri.image-ref", image.to_owned()),
        ("containerd.io/snapshot/cri.manifest-digest", manifest.to_owned()),
        ("containerd.io/snapshot/cri.layer-digest", digest),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    let message = PrepareSnapshotRequest { key: "default/1/extract".to_owned(), labels };
    let mut request = tonic::Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", traceparent.parse().unwrap());
    metadata.insert("containerd-namespace", "default".parse().unwrap());
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(
        "/containerd.services.snapshots.v1.Snapshots/Prepare",
    );
    let codec = tonic_prost::ProstCodec::<PrepareSnapshotRequest, Nothing>::default();
    client
        .unary(request, path, codec)
        .await
        .map_or_else(|status| status.code(), |_| tonic::Code::Ok)
}

/// The spans of the traces that have arrived, once there are so many.
async fn spans(collector: &FaultyRegistry, traces: usize) -> Vec<Vec<Value>> {
    let accepted = || {
        let requests = collector.requests();
        // The first one was told to come again.
        requests.into_iter().skip(1).collect::<Vec<_>>()
    };
    let began = std::time::Instant::now();
    while accepted().len() < traces {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", collector.requests());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let each = accepted().into_iter().map(|request| {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/traces"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        let body: Value = serde_json::from_str(&request.body).unwrap();
        let resource = &body["resourceSpans"][0];
        assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "our-hoist");
        resource["scopeSpans"][0]["spans"].as_array().unwrap().clone()
    });
    each.collect()
}

fn named<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    let found = spans.iter().find(|span| span["name"].as_str().unwrap().starts_with(name));
    found.unwrap_or_else(|| panic!("no span {name} in {spans:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_a_trace_and_continues_containerds() {
    let server = FaultyRegistry::start().await;
    let collector = FaultyRegistry::start().await;
    collector.script(|request, _| Reply::new(if request.number == 0 { 503 } else { 200 }, "{}"));
    let layer = || Layer::of("zstd", "one", noise("one", 200_000));
    let image = push(&server, "v1", &[layer()]);
    let environment = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.host)),
        ("OTEL_SERVICE_NAME", "our-hoist".to_owned()),
    ];
    let name = image.clone();
    let (daemon, manifest) = blocking(move || {
        let daemon = Daemon::start_with("", &serde_json::json!({}), environment);
        let report = daemon.told(&["pull", "--snapshots", "--json", &name]);
        let report: Value = serde_json::from_str(&report).unwrap();
        (daemon, report["manifest"].as_str().unwrap().to_owned())
    })
    .await;
    let first = spans(&collector, 1).await.remove(0);
    let (pull, one) = (named(&first, "pull"), named(&first, "layer "));
    assert_eq!(pull["parentSpanId"], "");
    assert_eq!(one["parentSpanId"], pull["spanId"]);
    for phase in ["download", "decompress", "hash", "write", "commit"] {
        assert_eq!(named(&first, phase)["parentSpanId"], one["spanId"], "{phase}");
    }
    let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    for span in &first {
        assert!(time(span, "startTimeUnixNano") <= time(span, "endTimeUnixNano"), "{span}");
        assert!(time(span, "startTimeUnixNano") >= time(pull, "startTimeUnixNano"), "{span}");
    }
    let socket = daemon.home.path().join("hoist.sock");
    let caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = prepare(&socket, &image, &manifest, &layer(), caller).await;
    assert_eq!(answer, tonic::Code::AlreadyExists, "the layer is provided");
    let second = spans(&collector, 2).await.remove(1);
    let pull = named(&second, "pull");
    assert_eq!(pull["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(pull["parentSpanId"], "00f067aa0ba902b7");
}
