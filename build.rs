//! Generates the control API's code from `proto/` with protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        .compile_protos(&["proto/hoist/control/v1/control.proto"], &["proto"])?;
    Ok(())
}
