//! Generates the code of hoist's control API, and of what it asks containerd, from `proto/` with protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/hoist/control/v1/control.proto",
        "proto/containerd/services/content/v1/content.proto",
        "proto/containerd/services/images/v1/images.proto",
    ];
    tonic_prost_build::configure().compile_protos(&files, &["proto"])?;
    Ok(())
}
