//! Generates the ttrpc service and its messages from `proto/agent.proto`; needs no `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=proto/agent.proto");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .include("proto")
        .input("proto/agent.proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()?;
    // The generator's files start with inner attributes, which `include!` refuses inside a module: name them by path.
    std::fs::write(
        out.join("generated.rs"),
        format!(
            "#[path = {agent:?}]\npub mod agent;\n#[path = {service:?}]\npub mod agent_ttrpc;\n",
            agent = out.join("agent.rs"),
            service = out.join("agent_ttrpc.rs"),
        ),
    )?;
    Ok(())
}
