//! Generates the code of hoist's control API, and of what it asks containerd, from `proto/` with protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/hoist/control/v1/control.proto",
        "proto/containerd/services/containers/v1/containers.proto",
        "proto/containerd/services/content/v1/content.proto",
        "proto/containerd/services/images/v1/images.proto",
        "proto/containerd/services/leases/v1/leases.proto",
        "proto/containerd/services/snapshots/v1/snapshots.proto",
    ];
    tonic_prost_build::configure().compile_protos(&files, &["proto"])?;
    Ok(())
}
