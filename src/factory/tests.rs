//! What the directory of templates promises: whole or not at all, and nothing that was touched. And what is asked of a
//! hypervisor, where there is a template and where there is none.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hypervisor::{
    Boot, Capabilities, Device, Hypervisor, Memory, MemoryBacking, SerialPort, Size, VirtioFs, Vm, VmRecord,
    VmSpec,
};
use slog::{Discard, Logger, o};

use super::direct::Direct;
use super::shelf::{Shelf, Use};
use super::template::Template;
use super::{VmFactory, key};
use crate::error::ErrorKind;
use crate::model::TemplatePlan;

const KEY: &str = "0123456789abcdef0123456789abcdef";

struct Stand {
    _directory: tempfile::TempDir,
    path: PathBuf,
    shelf: Shelf,
}

fn stand() -> Stand {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("templates");
    Stand {
        shelf: Shelf::new(&path),
        path,
        _directory: directory,
    }
}

impl Stand {
    /// Makes a template with these contents.
    async fn make(&self) {
        let unfinished = self.shelf.lock().await.unwrap().begin(KEY).unwrap();
        let (memory, state) = unfinished.files().unwrap();
        fs::File::from(memory).write_all(b"memory").unwrap();
        fs::File::from(state).write_all(b"state").unwrap();
        assert!(
            self.shelf.find(KEY).unwrap().is_none(),
            "it is there before it is whole"
        );
        unfinished.finish("a test").unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(KEY).join(name)
    }

    /// Why it is refused.
    fn refusal(&self) -> String {
        match self.shelf.find(KEY) {
            Ok(found) => panic!("it is {}", if found.is_some() { "believed" } else { "not there" }),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
                let text = error.to_string();
                assert!(text.contains("factory init"), "{text}");
                text
            }
        }
    }
}

#[tokio::test]
async fn what_was_made_is_found_until_it_is_taken_away() {
    let stand = stand();
    assert!(stand.shelf.find(KEY).unwrap().is_none());
    assert!(stand.shelf.list().unwrap().is_empty());
    stand.make().await;
    let found = stand.shelf.find(KEY).unwrap().unwrap();
    let read = |file| {
        let mut text = String::new();
        fs::File::from(file).read_to_string(&mut text).map(|_| text)
    };
    assert_eq!(read(found.memory).unwrap(), "memory");
    let kept = stand.shelf.list().unwrap();
    assert_eq!(
        (kept.len(), kept[0].key.as_str(), &kept[0].problem),
        (1, KEY, &None)
    );

    // Somebody has the state open when everything is taken away.
    stand.shelf.clear().await.unwrap();
    assert_eq!(read(found.state).unwrap(), "state");
    assert!(stand.shelf.find(KEY).unwrap().is_none() && !stand.path.exists());
    stand.shelf.clear().await.unwrap();
}

#[tokio::test]
async fn what_was_touched_is_refused() {
    type Touch = fn(&Stand);
    let table: &[(&str, Touch)] = &[
        ("has 3 bytes, and was sealed with 6", |stand| {
            let file = fs::File::options().write(true).open(stand.file("memory"));
            file.unwrap().set_len(3).unwrap();
        }),
        ("was changed after it was sealed", |stand| {
            let mut file = fs::File::options().write(true).open(stand.file("state")).unwrap();
            file.write_all(b"STATE").unwrap();
        }),
        ("was changed after it was sealed", |stand| {
            // The same content, size and times, but for the one that nobody can set.
            let path = stand.file("state");
            let (text, times) = (
                fs::read(&path).unwrap(),
                fs::metadata(&path).unwrap().modified().unwrap(),
            );
            let mut file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all(&text).unwrap();
            file.set_modified(times).unwrap();
        }),
        ("has mode 600", |stand| {
            fs::set_permissions(stand.file("memory"), fs::Permissions::from_mode(0o600)).unwrap();
        }),
        ("has mode 444", |stand| {
            fs::set_permissions(stand.file("template.json"), fs::Permissions::from_mode(0o444)).unwrap();
        }),
        ("belongs to user 12345", |stand| {
            chown(stand.file("state"), Some(12345), None).unwrap()
        }),
        ("belongs to user 12345", |stand| {
            chown(&stand.path, Some(12345), None).unwrap()
        }),
        ("can be written by others", |stand| {
            fs::set_permissions(&stand.path, fs::Permissions::from_mode(0o777)).unwrap();
        }),
        ("cannot be opened", |stand| {
            fs::rename(stand.file("memory"), stand.file("elsewhere")).unwrap();
            symlink("elsewhere", stand.file("memory")).unwrap();
        }),
        ("cannot be opened", |stand| {
            fs::remove_file(stand.file("template.json")).unwrap()
        }),
        ("is no directory", |stand| {
            fs::rename(stand.path.join(KEY), stand.path.join("elsewhere")).unwrap();
            symlink("elsewhere", stand.path.join(KEY)).unwrap();
        }),
        ("cannot be understood", |stand| rewrite(stand, |_| "{".to_owned())),
        ("has version 9", |stand| {
            rewrite(stand, |text| text.replace("\"version\":1", "\"version\":9"));
        }),
        ("is of another template", |stand| {
            rewrite(stand, |text| {
                text.replace(KEY, "00000000000000000000000000000000")
            });
        }),
    ];
    for (expected, touch) in table {
        let stand = stand();
        stand.make().await;
        assert!(stand.shelf.find(KEY).unwrap().is_some());
        touch(&stand);
        let told = stand.refusal();
        assert!(told.contains(expected), "{expected}: {told}");
    }
}

/// Writes another manifest, as somebody would who may.
fn rewrite(stand: &Stand, change: impl FnOnce(String) -> String) {
    let path = stand.file("template.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, change(text)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
}

#[tokio::test]
async fn what_was_never_finished_is_taken_away() {
    let stand = stand();
    let begun = stand.shelf.lock().await.unwrap().begin(KEY).unwrap();
    let dir = begun.dir().to_owned();
    begun.files().unwrap();
    drop(begun);
    assert!(!dir.exists());
    let begun = stand.shelf.lock().await.unwrap().begin(KEY).unwrap();
    begun.abandon().unwrap();
    assert!(!dir.exists());
    // Of somebody who was killed.
    fs::create_dir(stand.path.join(".new-1")).unwrap();
    stand.make().await;
    assert!(!stand.path.join(".new-1").exists());
    // Only a whole one is in the place of another one.
    fs::File::options()
        .append(true)
        .open(stand.file("memory"))
        .unwrap()
        .set_len(1)
        .unwrap();
    stand.make().await;
    assert!(stand.shelf.find(KEY).unwrap().is_some());
}

#[tokio::test]
async fn only_what_is_ours_is_taken_away() {
    let stand = stand();
    stand.make().await;
    fs::write(stand.path.join("precious"), "").unwrap();
    stand.shelf.note(Use::Hit);
    stand.shelf.clear().await.unwrap();
    let left: Vec<_> = fs::read_dir(&stand.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["precious"]);
}

#[tokio::test]
async fn uses_are_counted_and_the_last_miss_is_kept() {
    let stand = stand();
    stand.shelf.note(Use::Hit);
    assert_eq!(stand.shelf.uses().unwrap().hits, 0, "nobody keeps templates here");
    stand.make().await;
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let shelf = stand.shelf.clone();
            std::thread::spawn(move || {
                for _ in 0..10 {
                    shelf.note(Use::Hit);
                    shelf.note(Use::Miss("no reason"));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    stand.shelf.note(Use::Miss(&"ä".repeat(400)));
    let uses = stand.shelf.uses().unwrap();
    assert_eq!((uses.hits, uses.misses), (80, 81));
    assert_eq!(uses.last_miss.unwrap(), "ä".repeat(250));
    fs::write(stand.path.join("uses.json"), "no sense").unwrap();
    stand.shelf.note(Use::Hit);
    assert_eq!(stand.shelf.uses().unwrap().hits, 1);
}

/// Notes what it is asked for, and does nothing.
#[derive(Default)]
struct Noted(Mutex<Vec<String>>);

fn names(devices: &[Device]) -> Vec<&'static str> {
    let name = |device: &Device| match device {
        Device::SerialPort(_) => "port",
        Device::VirtioFs(_) => "share",
        _ => "other",
    };
    devices.iter().map(name).collect()
}

#[async_trait]
impl Hypervisor for Noted {
    fn name(&self) -> &'static str {
        "noted"
    }

    fn capabilities(&self) -> Capabilities {
        unreachable!("that was planned")
    }

    fn check_host(&self) -> Result<(), hypervisor::Error> {
        Ok(())
    }

    fn fingerprint(&self, spec: &VmSpec) -> Result<String, hypervisor::Error> {
        Ok(format!("{spec:?}"))
    }

    async fn launch(&self, spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, hypervisor::Error> {
        let size = (
            spec.vcpus,
            spec.max_vcpus,
            spec.memory.size_mib,
            spec.memory.max_mib,
        );
        let said = match boot {
            Boot::Cold => format!("cold {size:?} {:?}", names(&spec.devices)),
            Boot::ToSave => "to save".to_owned(),
            Boot::Clone(saved) => format!(
                "copy {size:?} {:?} and {:?} of {}",
                names(&spec.devices),
                names(&saved.devices),
                spec.id
            ),
        };
        self.0.lock().unwrap().push(said);
        Err(hypervisor::Error::new(
            hypervisor::ErrorKind::Internal,
            "only a test",
        ))
    }

    async fn reap(&self, _: &VmRecord) -> Result<(), hypervisor::Error> {
        Ok(())
    }
}

/// A sandbox's machine, which is larger than the template.
fn spec(id: &str) -> VmSpec {
    let socket = |name: &str| PathBuf::from(format!("/run/{id}/{name}"));
    VmSpec {
        id: id.to_owned(),
        run_dir: socket("vm"),
        kernel: "/vmlinux".into(),
        initrd: "/initrd.img".into(),
        kernel_params: vec!["kata.agent=serial".into()],
        vcpus: 2,
        max_vcpus: 2,
        memory: Memory {
            size_mib: 512,
            max_mib: 512,
            backing: MemoryBacking::Shared,
        },
        devices: vec![
            Device::SerialPort(SerialPort {
                name: "agent".into(),
                socket: socket("agent.sock"),
            }),
            Device::VirtioFs(VirtioFs {
                tag: "shared".into(),
                socket: socket("fs.sock"),
                directory: socket("shared"),
            }),
        ],
        network_namespace: None,
        cgroups: Vec::new(),
        labels: Vec::new(),
    }
}

fn plan() -> TemplatePlan {
    let size = |vcpus, memory_mib| Size { vcpus, memory_mib };
    TemplatePlan {
        size: size(1, 256),
        most: size(4, 1024),
        shares: false,
    }
}

#[test]
fn a_key_is_of_the_template_and_not_of_the_sandbox() {
    let hypervisor = Noted::default();
    let of = |spec: &VmSpec, plan: &TemplatePlan| key::of(&hypervisor, &key::template(spec, plan)).unwrap();
    let first = of(&spec("a"), &plan());
    assert!(key::is_key(&first), "{first}");
    let mut other = spec("b");
    (other.vcpus, other.memory.size_mib) = (4, 1024);
    other.memory.backing = MemoryBacking::Private;
    other.devices.pop();
    assert_eq!(of(&other, &plan()), first);

    other.kernel_params.push("debug".into());
    assert_ne!(of(&other, &plan()), first);
    let sharing = TemplatePlan {
        shares: true,
        ..plan()
    };
    assert_ne!(of(&spec("a"), &sharing), first);
    assert_eq!(of(&spec("a"), &sharing), of(&spec("b"), &sharing));
    let mut larger = plan();
    larger.most.memory_mib += 128;
    assert_ne!(of(&spec("a"), &larger), first);
    for bad in [
        "",
        "..",
        &first[1..],
        &first.to_uppercase().replace(char::is_numeric, "G"),
    ] {
        assert!(!key::is_key(bad), "{bad}");
    }
}

#[tokio::test]
async fn a_machine_is_copied_where_there_is_a_template_and_booted_where_that_fails() {
    let stand = stand();
    let noted = Arc::new(Noted::default());
    let hypervisor: Arc<dyn Hypervisor> = Arc::<Noted>::clone(&noted);
    let factory = Template::new(
        stand.shelf.clone(),
        Arc::clone(&hypervisor),
        Direct::new(hypervisor),
        Logger::root(Discard, o!()),
    );
    let acquire = async |plan| {
        let error = factory.acquire(spec("s"), plan).await.err().unwrap().to_string();
        (std::mem::take(&mut *noted.0.lock().unwrap()), error)
    };
    let cold = r#"cold (2, 2, 512, 512) ["port", "share"]"#;
    let (asked, error) = acquire(Some(plan())).await;
    assert_eq!(asked, [cold]);
    assert!(error.contains("there is no template"), "{error}");
    let (asked, error) = acquire(None).await;
    assert_eq!(asked, [cold]);
    assert!(error.contains("cannot be saved"), "{error}");

    let key = key::of(&*noted, &key::template(&spec("s"), &plan())).unwrap();
    let unfinished = stand.shelf.lock().await.unwrap().begin(&key).unwrap();
    unfinished.files().unwrap();
    unfinished.finish("noted").unwrap();
    let (asked, error) = acquire(Some(plan())).await;
    assert_eq!(
        asked,
        [r#"copy (1, 4, 256, 1024) ["port"] and ["share"] of s"#, cold]
    );
    assert!(error.contains(&format!("template {key}: only a test")), "{error}");
    assert_eq!(
        stand.shelf.uses().unwrap().misses,
        1,
        "where there was a directory"
    );
}
