//! What `start` is told on its standard input. Pure.
//!
//! containerd up to 2.2 sends the runtime options, an `Any`, or nothing; from 2.3 on it sends bootstrap parameters, which an
//! `Any` decodes from as well (its type would be the container's id). So they are told apart as containerd's own shims
//! do it: bootstrap parameters repeat the id and the namespace of the command line.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, LogLevel};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::options;

/// What was said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// Id of the container; empty: what the command line says.
    pub id: String,
    /// Namespace; empty: what the command line says.
    pub namespace: String,
    /// More should be logged than usually.
    pub debug: bool,
    /// containerd's ttrpc socket, where it was said: it may be empty.
    pub ttrpc_address: Option<String>,
    /// containerd's gRPC socket, where it was said.
    pub grpc_address: Option<String>,
    /// Program that publishes events, where it was said.
    pub publish_binary: Option<String>,
    /// Directory for the socket, where the administrator wants one.
    pub socket_dir: Option<String>,
    /// Runtime options.
    pub options: Option<Any>,
}

/// Understands the standard input of `start`; `id` and `namespace` are the command line's. What makes no sense is nothing.
pub fn understand(input: &[u8], id: &str, namespace: &str) -> Said {
    match BootstrapParams::parse_from_bytes(input) {
        Ok(params) if repeats(&params, id, namespace) => of(params),
        Ok(_) | Err(_) => Said {
            options: Any::parse_from_bytes(input)
                .ok()
                .filter(|options| !options.type_url.is_empty()),
            ..Default::default()
        },
    }
}

/// Whether parameters are of this command line. Its flags are announced to go away; then nothing else can be meant.
fn repeats(params: &BootstrapParams, id: &str, namespace: &str) -> bool {
    let same = |said: &str, flag: &str| !said.is_empty() && (flag.is_empty() || said == flag);
    same(&params.instance_id, id) && same(&params.namespace, namespace)
}

fn of(params: BootstrapParams) -> Said {
    let said = |text: String| Some(text).filter(|text| !text.is_empty());
    let debug = matches!(
        params.log_level.enum_value(),
        Ok(LogLevel::LOG_LEVEL_DEBUG | LogLevel::LOG_LEVEL_TRACE)
    );
    Said {
        id: params.instance_id,
        namespace: params.namespace,
        debug,
        ttrpc_address: Some(params.containerd_ttrpc_address),
        grpc_address: said(params.containerd_grpc_address),
        publish_binary: said(params.containerd_binary),
        socket_dir: params.socket_dir.and_then(said),
        options: params
            .extensions
            .into_iter()
            .filter_map(|extension| extension.value.into_option())
            .find(|value| options::is_ours(&value.type_url)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use proptest::prelude::*;

    const OURS: &str = "runtimeoptions.v1.Options";

    fn params() -> BootstrapParams {
        let extension = |type_url| Extension {
            value: Some(options::tests::options(type_url, "/etc/k.toml")).into(),
            ..Default::default()
        };
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            log_level: LogLevel::LOG_LEVEL_TRACE.into(),
            containerd_ttrpc_address: "/run/c.sock.ttrpc".into(),
            containerd_grpc_address: "/run/c.sock".into(),
            containerd_binary: "/usr/bin/containerd".into(),
            extensions: vec![extension("some.other.Message"), extension(OURS)],
            socket_dir: Some("/run/s".into()),
            ..Default::default()
        }
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(understand(b"", "c1", "k8s.io"), Said::default());
    }

    #[test]
    fn options_are_options() {
        let options = options::tests::options(OURS, "/etc/k.toml");
        let said = understand(&options.write_to_bytes().unwrap(), "c1", "k8s.io");
        let expected = Said {
            options: Some(options),
            ..Default::default()
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn bootstrap_parameters_are_not_taken_for_options() {
        let bytes = params().write_to_bytes().unwrap();
        assert_eq!(
            Any::parse_from_bytes(&bytes).unwrap().type_url,
            "c1",
            "the trap: they decode as an Any"
        );
        let expected = Said {
            id: "c1".into(),
            namespace: "k8s.io".into(),
            debug: true,
            ttrpc_address: Some("/run/c.sock.ttrpc".into()),
            grpc_address: Some("/run/c.sock".into()),
            publish_binary: Some("/usr/bin/containerd".into()),
            socket_dir: Some("/run/s".into()),
            options: Some(options::tests::options(OURS, "/etc/k.toml")),
        };
        assert_eq!(understand(&bytes, "c1", "k8s.io"), expected);
        assert_eq!(understand(&bytes, "", ""), expected, "a caller without flags");
    }

    #[test]
    fn bootstrap_parameters_of_somebody_else_are_not_ours() {
        let bytes = params().write_to_bytes().unwrap();
        for (id, namespace) in [("c2", "k8s.io"), ("c1", "default")] {
            let said = understand(&bytes, id, namespace);
            assert_eq!(
                (said.id.as_str(), said.socket_dir),
                ("", None),
                "{id} {namespace}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_understood_somehow(input in prop::collection::vec(any::<u8>(), 0..128)) {
            let said = understand(&input, "c1", "k8s.io");
            prop_assert!(said.id.is_empty() || said.id == "c1");
        }

        #[test]
        fn a_cut_message_does_no_harm(length in 0_usize..200) {
            let bytes = params().write_to_bytes().unwrap();
            understand(&bytes[..length.min(bytes.len())], "c1", "k8s.io");
        }
    }
}
