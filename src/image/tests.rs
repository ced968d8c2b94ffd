//! Manifests, configurations and platforms, from JSON to a plan.

use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn manifest(layers: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{A}","size":7}},"layers":[{layers}]}}"#
    )
}

#[test]
fn a_manifest_and_its_configuration_become_a_plan() {
    let json = manifest(&format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{B}","size":9}}"#
    ));
    let ManifestOrIndex::Manifest { layers, config } =
        ManifestOrIndex::parse(None, json.as_bytes()).unwrap()
    else {
        panic!("not a manifest")
    };
    assert_eq!(config.size, 7);
    let diff_ids =
        parse_config(format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{A}"]}}}}"#).as_bytes())
            .unwrap();
    let plan = ImagePlan::new(A.parse().unwrap(), layers.clone(), &diff_ids).unwrap();
    assert_eq!(plan.layers[0].blob.to_string(), B);
    assert_eq!(plan.layers[0].chain_id.to_string(), A);
    assert_eq!(plan.layers[0].compression(), Some(Compression::Gzip));
    let error = ImagePlan::new(A.parse().unwrap(), layers, &[]).unwrap_err();
    assert_eq!(error.to_string(), "the manifest has 1 layers and the configuration 0 DiffIDs");
}

#[test]
fn a_document_that_is_both_is_refused() {
    let json = format!(
        r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{A}","size":1}},"layers":[]}}"#
    );
    assert!(matches!(
        ManifestOrIndex::parse(None, json.as_bytes()),
        Err(ManifestError::MediaType(_))
    ));
    assert!(matches!(
        ManifestOrIndex::parse(
            None,
            manifest(&format!(r#"{{"digest":"{B}","size":-1}}"#)).as_bytes()
        ),
        Err(ManifestError::Size { .. })
    ));
}

#[test]
fn the_platform_is_chosen_and_attestations_are_not() {
    let json = format!(
        r#"{{"schemaVersion":2,"manifests":[
          {{"digest":"{A}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
          {{"digest":"{B}","size":2,"platform":{{"os":"linux","architecture":"amd64"}}}},
          {{"digest":"{A}","size":3,"platform":{{"os":"unknown","architecture":"unknown"}},
            "annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}]}}"#
    );
    let ManifestOrIndex::Index(index) = ManifestOrIndex::parse(None, json.as_bytes()).unwrap()
    else {
        panic!("not an index")
    };
    let pick = |p: &str| select_platform(&index, &p.parse().unwrap());
    assert_eq!(pick("linux/amd64").unwrap().size, 2);
    assert_eq!(pick("linux/arm64").unwrap().size, 1);
    let error = pick("linux/s390x").unwrap_err().to_string();
    assert_eq!(
        error,
        "the index has no manifest for linux/s390x; it has linux/arm64/v8, linux/amd64"
    );
    assert!("linux".parse::<Platform>().is_err());
}

#[test]
fn an_image_of_one_platform_is_for_no_other() {
    let check = |config: &str, platform: &str| {
        check_platform(config.as_bytes(), &platform.parse().unwrap())
    };
    let arm = r#"{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{}}"#;
    assert!(check(arm, "linux/arm64").is_ok());
    assert!(check(r#"{"rootfs":{}}"#, "linux/s390x").is_ok(), "it does not say");
    let error = check(arm, "linux/amd64").unwrap_err().to_string();
    for platform in ["linux/arm64/v8", "linux/amd64"] {
        assert!(error.contains(platform), "{error}");
    }
}
