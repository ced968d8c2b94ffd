//! `hoist prefetch`: images that are on this host before anybody needs them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::args::EXIT_CODES;
use super::error::CliError;
use super::remote::{Client, connect, followed, told};
use super::table::{bytes, short, table, text};
use super::{print, print_json, summary};
use crate::config::Environment;
use crate::control::{ListPinsRequest, Pin, PrefetchRequest, ReleaseRequest, ReleaseResponse};
use crate::timeline::PullReport;
use crate::units::parse_duration;

/// Bring images onto this host before anybody needs them, and keep them
///
/// hoistd pulls each image, puts it into containerd as a pull would, and pins it: a container starts on it
/// without its registry, the kubelet's garbage collection leaves it alone (containerd 1.7 and later), and
/// its layers stay until it is released, whatever is pruned. Pulls that a container waits for go before.
/// Ctrl-C ends it, and nothing of the image that was not done stays.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Prefetch {
    /// The images, with their registries
    #[arg(required_unless_present = "list", value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    into: Into,
    /// List the images that are pinned, of all namespaces
    #[arg(long, conflicts_with_all = ["images", "release", "keep", "platform"])]
    list: bool,
    /// Let the images go: the pins, and the images where no container uses them
    #[arg(long, conflicts_with_all = ["keep", "platform"])]
    release: bool,
    /// Release them after this time, as 30m or 168h; without it they stay until they are released
    #[arg(long = "for", value_name = "TIME", id = "keep", value_parser = parse_duration)]
    keep: Option<Duration>,
    /// The platform to choose, as linux/arm64; the host's unless given
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// No progress, only the summary
    #[arg(long, short)]
    quiet: bool,
    /// JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// `hoist prefetch`.
pub(super) async fn prefetch(
    args: &Prefetch,
    socket: &Path,
    environment: &Environment,
) -> Result<(), CliError> {
    let mut client = connect(socket).await?;
    if args.list {
        return list(&mut client, args.json).await;
    }
    let whose = Whose::of(&args.into, environment);
    if args.release {
        return release(&mut client, args, &whose).await;
    }
    let mut reports = Vec::new();
    let mut failed = None;
    for image in &args.images {
        let request = whose.request(image, args.platform.as_deref(), args.keep);
        match pull(&mut client, request, args.quiet || args.json).await {
            Ok(report) if args.json => reports.push(report),
            Ok(report) => print(&summary::whole(&report))?,
            // The others are wanted all the same; the first failure is what it ends with.
            Err(error) => failed = Some(tell_or_keep(failed, error)),
        }
    }
    if args.json {
        print_json(&reports)?;
    }
    failed.map_or(Ok(()), Err)
}

/// Keeps the first failure, which is told at the end; tells the others.
pub(super) fn tell_or_keep(first: Option<CliError>, error: CliError) -> CliError {
    match first {
        None => error,
        Some(first) => {
            super::tell(&error);
            first
        }
    }
}

/// In which containerd, and whose images.
pub(super) struct Whose {
    pub(super) namespace: String,
    /// Empty: the one that hoistd knows.
    pub(super) containerd: String,
}

/// Where images are put.
#[derive(Debug, Args)]
pub(super) struct Into {
    /// containerd's namespace: k8s.io for the kubelet, moby for Docker; CONTAINERD_NAMESPACE, or default
    /// as with ctr and nerdctl, unless given
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    /// containerd's socket; CONTAINERD_ADDRESS, or the one in hoistd's configuration (cri.containerd),
    /// unless given
    #[arg(long, value_name = "SOCKET")]
    containerd_address: Option<PathBuf>,
}

impl Whose {
    /// What the flags say, else the environment.
    pub(super) fn of(into: &Into, environment: &Environment) -> Self {
        let namespace = into.namespace.clone().or_else(|| environment.containerd_namespace.clone());
        let address =
            into.containerd_address.clone().or_else(|| environment.containerd_address.clone());
        // Of this process's working directory, not of hoistd's.
        let address = address.map(|path| std::path::absolute(&path).unwrap_or(path));
        Self {
            namespace: namespace.unwrap_or_else(|| "default".to_owned()),
            containerd: address.map(|path| path.display().to_string()).unwrap_or_default(),
        }
    }

    /// Asks for an image, to be kept for so long; until it is released unless given.
    pub(super) fn request(
        &self,
        image: &str,
        platform: Option<&str>,
        keep: Option<Duration>,
    ) -> PrefetchRequest {
        PrefetchRequest {
            image: image.to_owned(),
            platform: platform.unwrap_or_default().to_owned(),
            namespace: self.namespace.clone(),
            containerd: self.containerd.clone(),
            keep_seconds: keep.map_or(0, |keep| keep.as_secs().max(1)),
        }
    }
}

/// Has hoistd prefetch one image, and shows how far it is.
pub(super) async fn pull(
    client: &mut Client,
    request: PrefetchRequest,
    quiet: bool,
) -> Result<PullReport, CliError> {
    let answer = client.prefetch(request).await.map_err(|status| refused(&status))?;
    let lost = "it ended in the middle of the prefetch; nothing is pinned";
    followed(answer, quiet, "", lost).await
}

/// What hoistd said before it began.
pub(super) fn refused(status: &tonic::Status) -> CliError {
    CliError::Refused { code: status.code(), text: status.message().to_owned() }
}

async fn release(client: &mut Client, args: &Prefetch, whose: &Whose) -> Result<(), CliError> {
    let mut lines = Vec::new();
    let mut failed = None;
    for image in &args.images {
        let Whose { namespace, containerd } = whose;
        let (namespace, containerd) = (namespace.clone(), containerd.clone());
        let request = ReleaseRequest { image: image.clone(), namespace, containerd };
        match client.release(request).await {
            Ok(answer) => {
                let ReleaseResponse { removed, containers } = answer.into_inner();
                if !args.json {
                    print(&released(image, removed, &containers))?;
                }
                lines.push(serde_json::json!({
                    "image": image, "removed": removed, "containers": containers,
                }));
            }
            Err(status) => failed = Some(tell_or_keep(failed, refused(&status))),
        }
    }
    if args.json {
        print_json(&lines)?;
    }
    failed.map_or(Ok(()), Err)
}

fn released(image: &str, removed: bool, containers: &[String]) -> String {
    match (removed, containers) {
        (true, _) => format!("{image}: released and removed\n"),
        (false, []) => format!(
            "{image}: released; it stays in containerd, which had it before it was prefetched\n"
        ),
        (false, containers) => {
            format!("{image}: released; it stays in containerd for {}\n", containers.join(", "))
        }
    }
}

/// The images that are pinned, of all namespaces.
pub(super) async fn pins(client: &mut Client) -> Result<Vec<Pin>, CliError> {
    let answer = client.list_pins(ListPinsRequest {}).await.map_err(|status| told(&status))?;
    Ok(answer.into_inner().pins)
}

async fn list(client: &mut Client, as_json: bool) -> Result<(), CliError> {
    let pins = pins(client).await?;
    if as_json {
        return print_json(&pins.iter().map(json).collect::<Vec<_>>());
    }
    let header = ["image", "namespace", "digest", "until", "layers", "size"];
    let mut table = table(&header, 4);
    for pin in &pins {
        table.add_row([
            pin.image.clone(),
            pin.namespace.clone(),
            short(&pin.digest),
            until(pin),
            pin.layers.to_string(),
            bytes(pin.bytes),
        ]);
    }
    print(&format!("{}\n{} images pinned\n", text(&table), pins.len()))
}

/// How long a pin lasts, for people.
fn until(pin: &Pin) -> String {
    if pin.expires_at == 0 {
        return "released".to_owned();
    }
    let expires = UNIX_EPOCH + Duration::from_secs(pin.expires_at);
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
    match left {
        0..3600 => format!("in {} min", left.div_ceil(60)),
        3600..172_800 => format!("in {} h", left.div_ceil(3600)),
        _ => format!("in {} d", left.div_ceil(86_400)),
    }
}

fn json(pin: &Pin) -> serde_json::Value {
    serde_json::json!({
        "image": pin.image,
        "namespace": pin.namespace,
        "containerd": pin.containerd,
        "digest": pin.digest,
        "layers": pin.layers,
        "bytes": pin.bytes,
        "pinned_at": pin.pinned_at,
        "expires_at": (pin.expires_at > 0).then_some(pin.expires_at),
    })
}
