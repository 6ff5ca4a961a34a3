//! Direct volumes, in Kata's form on disk: what somebody (a CSI driver, `kata-runtime direct-volume add`) has said about a path before a
//! pod is created that mounts it. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::DirectVolume;

/// Where Kata has them: a directory for each.
pub const PLACE: &str = "/run/kata-containers/shared/direct-volumes";

/// Name of the file in a volume's directory that says how it is to be mounted.
pub const FILE: &str = "mountInfo.json";

/// How a volume is to be mounted, as Kata has it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountInfo {
    /// What kind it is.
    #[serde(rename = "volume-type")]
    pub volume_type: String,
    /// Path of the block device.
    pub device: String,
    /// Its file system.
    #[serde(rename = "fstype")]
    pub fs_type: String,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Mount options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl From<MountInfo> for DirectVolume {
    fn from(info: MountInfo) -> Self {
        Self {
            volume_type: info.volume_type,
            device: info.device.into(),
            fs_type: info.fs_type,
            options: info.options,
            metadata: info.metadata,
        }
    }
}

/// The directory, in `place`, of the volume that is mounted from this path.
pub fn directory(place: &Path, volume: &Path) -> PathBuf {
    place.join(base64url(volume.as_os_str().as_encoded_bytes()))
}

/// RFC 4648, section 5, with padding: what Go calls `URLEncoding`. Pure.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * at) & 63).unwrap_or(0);
            match at <= group.len() {
                true => text.extend(DIGITS.get(digit).map(|digit| char::from(*digit))),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_directory_is_named_as_kata_names_it() {
        for (path, name) in [
            ("/", "Lw=="),
            ("/a", "L2E="),
            ("/ab", "L2Fi"),
            ("/vol?>", "L3ZvbD8-"),
            ("/\u{ff}\u{ff}", "L8O_w78="),
        ] {
            assert_eq!(base64url(path.as_bytes()), name, "{path}");
        }
    }
}
