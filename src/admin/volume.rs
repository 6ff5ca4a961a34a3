//! Volumes that the guest has mounted from a disk, as an administrator or a CSI driver asks about them: in Kata's form.

use std::path::Path;

use agent_protocol as p;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Subject;
use crate::error::{Error, ErrorKind, Result};

/// What the figures are of, as CSI numbers it.
const BYTES: u32 = 1;
const INODES: u32 = 2;

/// Kata's order for a volume to grow.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Resize {
    volume_path: String,
    size: u64,
}

/// How full the volume at `path` is.
pub(super) async fn stats(subject: &Subject, path: Option<&String>) -> Result<Value> {
    let path = path.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            "no volume is named: /direct-volume/stats?path=PATH",
        )
    })?;
    Ok(told(&subject.sandbox.volume_stats(Path::new(path)).await?))
}

/// Has a volume grow, and tells what it has then.
pub(super) async fn resize(subject: &Subject, body: &[u8]) -> Result<Value> {
    let order: Resize = serde_json::from_slice(body).map_err(|cause| {
        let text = "the order is not understood: it takes VolumePath and Size (bytes)";
        Error::caused(ErrorKind::InvalidArgument, text, cause)
    })?;
    let path = Path::new(&order.volume_path);
    Ok(told(&subject.sandbox.grow_volume(path, order.size).await?))
}

/// As CSI has it, and Kata prints it.
fn told(stats: &p::VolumeStats) -> Value {
    let usage = |unit: u32, total: u64, free: u64, available: u64| {
        json!({
            "available": available,
            "total": total,
            "used": total.saturating_sub(free),
            "unit": unit,
        })
    };
    json!({
        "usage": [
            usage(BYTES, stats.total_bytes, stats.free_bytes, stats.available_bytes),
            usage(INODES, stats.total_inodes, stats.free_inodes, stats.free_inodes),
        ],
        "volume_condition": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_as_kata_tells_them() {
        let stats = p::VolumeStats {
            total_bytes: 100,
            free_bytes: 70,
            available_bytes: 60,
            total_inodes: 10,
            // Whatever a hostile guest says.
            free_inodes: 11,
            ..Default::default()
        };
        let expected = json!({
            "usage": [
                {"available": 60, "total": 100, "used": 30, "unit": 1},
                {"available": 11, "total": 10, "used": 0, "unit": 2},
            ],
            "volume_condition": {},
        });
        assert_eq!(told(&stats), expected);
    }

    #[test]
    fn an_order_is_kata_s() {
        let order: Resize = serde_json::from_str(r#"{"VolumePath":"/v","Size":7}"#).unwrap();
        assert_eq!((order.volume_path.as_str(), order.size), ("/v", 7));
    }
}
