//! `direct-volume`: what is told about a volume before a pod is created that mounts it, in Kata's form on disk, as CSI drivers write
//! it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use runtime::ErrorKind;
use runtime::admin::client::Client;
use runtime::admin::{Found, Survey};
use runtime::direct::{self, FILE, MountInfo, PLACE};
use serde_json::json;

use super::{Place, block_on, find, told};
use crate::place;

/// Tell about volumes that are to be mounted in the guest and not on the host, as CSI drivers do.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// Directory of the volumes.
    #[arg(long, value_name = "DIRECTORY", default_value = PLACE, hide = true)]
    volumes: PathBuf,
    #[command(subcommand)]
    order: Order,
}

#[derive(Debug, clap::Subcommand)]
enum Order {
    /// Say how a volume is to be mounted: containers that mount this path have the file system of a block device there.
    Add {
        /// Where the pod expects it on the host.
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
        /// JSON: volume-type, device, fstype, and perhaps metadata and options.
        #[arg(long, value_name = "JSON")]
        mount_info: String,
    },
    /// Forget a volume. One that is not known is success.
    #[command(visible_alias = "delete")]
    Remove {
        /// Where the pod expected it.
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
    },
    /// Print how full a volume is, in the guest that has it.
    Stats {
        /// Where the pod expected it.
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
        /// Sandbox that has it. Without it: the one that says so.
        #[arg(long, value_name = "ID")]
        sandbox: Option<String>,
    },
    /// Have a guest take a volume's new size into use: its block device, or the file, has been made larger before.
    Resize {
        /// Where the pod expected it.
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
        /// Bytes that it has at least; all that there are are taken into use.
        #[arg(long, value_name = "BYTES")]
        size: u64,
        /// Sandbox that has it. Without it: the one that says so.
        #[arg(long, value_name = "ID")]
        sandbox: Option<String>,
    },
}

/// Carries an order out.
///
/// # Errors
/// It cannot be, or the sandbox refuses it.
pub fn run(args: &Args, survey: impl FnOnce() -> Result<Survey>) -> Result<ExitCode> {
    match &args.order {
        Order::Add {
            volume_path,
            mount_info,
        } => {
            add(&args.volumes, volume_path, mount_info)?;
        }
        Order::Remove { volume_path } => remove(&args.volumes, volume_path)?,
        Order::Stats { volume_path, sandbox } => {
            let query = ("path", text(absolute(volume_path)?)?);
            let asked = Question {
                method: "GET",
                path: "/direct-volume/stats",
                query: Some(query),
                body: Vec::new(),
            };
            println!("{}", asked.of(&survey()?, volume_path, sandbox.as_deref())?);
        }
        Order::Resize {
            volume_path,
            size,
            sandbox,
        } => {
            let body = json!({"VolumePath": text(absolute(volume_path)?)?, "Size": size}).to_string();
            let asked = Question {
                method: "POST",
                path: "/direct-volume/resize",
                query: None,
                body: body.into_bytes(),
            };
            asked.of(&survey()?, volume_path, sandbox.as_deref())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn add(volumes: &Path, volume: &Path, mount_info: &str) -> Result<()> {
    let info: MountInfo = serde_json::from_str(mount_info).context(
        "--mount-info is not what it takes: volume-type, device, fstype, and perhaps metadata and options",
    )?;
    let dir = directory(volumes, volume)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    place::replace(&dir.join(FILE), &serde_json::to_vec(&info)?)
}

fn remove(volumes: &Path, volume: &Path) -> Result<()> {
    let dir = directory(volumes, volume)?;
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a sandbox is asked.
struct Question<'a> {
    method: &'static str,
    path: &'static str,
    query: Option<(&'static str, &'a str)>,
    body: Vec<u8>,
}

impl Question<'_> {
    /// Asks the sandbox that was named, or each that runs until one has the volume.
    fn of(&self, survey: &Survey, volume: &Path, named: Option<&str>) -> Result<String> {
        block_on(async {
            if let Some(named) = named {
                let found = find::target(survey, named).await?.sandbox;
                return self.ask(&found).await.map_err(told);
            }
            let alive = survey.sandboxes.iter().filter(|found| found.alive);
            // One that hangs keeps nobody from the answer of another one.
            let mut asked: FuturesUnordered<_> = alive.map(|found| self.ask(found)).collect();
            let mut failed = None;
            while let Some(answer) = asked.next().await {
                match answer {
                    Ok(answer) => return Ok(answer),
                    Err(error) if error.kind == ErrorKind::NotFound => {}
                    // It may end just now; one that has the volume says so.
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            match failed {
                Some(error) => Err(told(error)),
                None => bail!(
                    "no sandbox that runs has the direct volume {}: it is added before a pod that mounts it is created",
                    volume.display()
                ),
            }
        })
    }

    async fn ask(&self, found: &Found) -> Result<String, runtime::Error> {
        let client = Client::new(found)?;
        let answer = client
            .request(self.method, self.path, self.query, &self.body)
            .await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

fn text(volume: &Path) -> Result<&str> {
    volume
        .to_str()
        .with_context(|| format!("--volume-path {} is not UTF-8", volume.display()))
}

fn absolute(volume: &Path) -> Result<&Path> {
    ensure!(
        volume.is_absolute(),
        "--volume-path {} is not absolute",
        volume.display()
    );
    Ok(volume)
}

fn directory(volumes: &Path, volume: &Path) -> Result<PathBuf> {
    Ok(direct::directory(volumes, absolute(volume)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = r#"{"volume-type":"block","device":"/dev/sda","fstype":"ext4","options":["ro"]}"#;

    #[test]
    fn a_volume_is_added_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = dir.path().join("direct-volumes");
        let volume = Path::new("/var/lib/kubelet/vol");
        add(&volumes, volume, INFO).unwrap();
        let file = volumes.join("L3Zhci9saWIva3ViZWxldC92b2w=").join(FILE);
        let written: MountInfo = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(written, serde_json::from_str(INFO).unwrap());
        add(&volumes, volume, &INFO.replace("ext4", "xfs")).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("xfs"));
        remove(&volumes, volume).unwrap();
        assert!(!file.exists());
        remove(&volumes, volume).unwrap();
    }

    #[test]
    fn what_is_wrong_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = dir.path().join("v");
        let absolute = Path::new("/v");
        for (path, info) in [
            (Path::new("relative"), INFO),
            (absolute, "{"),
            (absolute, r#"{"device":"/dev/sda"}"#),
            (
                absolute,
                r#"{"volume-type":"b","device":"d","fstype":"e","more":1}"#,
            ),
        ] {
            assert!(add(&volumes, path, info).is_err(), "{info}");
        }
        assert!(!volumes.exists());
    }
}
