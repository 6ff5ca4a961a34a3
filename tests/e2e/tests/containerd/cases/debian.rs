//! Real programs, from Debian's packages: dynamic linking, an interpreter, a package manager.

use anyhow::Result;
use e2e::deadlines;
use e2e::parts::Part;

use super::Listed;
use crate::bed::Case;

const NEEDS: &[Part] = &[Part::Debootstrap];

pub const CASES: &[Listed] = &[
    Listed::both("python", python).needing(NEEDS),
    Listed::both("packages", packages).needing(NEEDS),
];

/// Python computes, forks, talks over a socket, locks and maps files, and has a thread.
fn python(case: &mut Case<'_>) -> Result<()> {
    let script = r#"
import fcntl, mmap, os, socket, sys, threading, time
print(sys.version_info[:2] >= (3, 9), sum(i * i for i in range(1000)))
ours, theirs = socket.socketpair()
if os.fork() == 0:
    theirs.sendall(b'from a child')
    os._exit(3)
print(ours.recv(100), os.waitstatus_to_exitcode(os.wait()[1]))
listener = socket.socket(socket.AF_UNIX)
listener.bind('/tmp/socket')
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect('/tmp/socket')
client.sendall(b'by name')
print(listener.accept()[0].recv(100))
with open('/var/tmp/file', 'w+b') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.truncate(8192)
    with mmap.mmap(file.fileno(), 8192) as memory:
        memory[5000:5005] = b'mapped'[:5]
        memory.flush()
    os.fsync(file.fileno())
    print(open('/var/tmp/file', 'rb').read()[5000:5005])
os.rename('/var/tmp/file', '/var/tmp/renamed')
print(sorted(os.listdir('/var/tmp')))
done = []
thread = threading.Thread(target=lambda: done.append(threading.current_thread().name))
thread.start()
thread.join()
print(len(done), os.getpid(), time.time() > 1.7e9)
sys.exit(17)
"#;
    let command = ["python3", "-c", script];
    let id = case.id();
    let output = case.run_debian(&["--rm"], &id, &command)?.output()?;
    let expected = "True 332833500\nb'from a child' 3\nb'by name'\nb'mappe'\n['renamed']\n1 1 True\n";
    assert_eq!(output.exits(17)?, expected);
    Ok(())
}

/// A package is built, installed by apt, used, and removed again.
fn packages(case: &mut Case<'_>) -> Result<()> {
    let script = r#"
set -e
mkdir -p /build/DEBIAN /build/usr/bin
printf 'Package: hello-e2e\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: says hello\n' > /build/DEBIAN/control
printf '#!/bin/sh\necho hello from a package\n' > /build/usr/bin/hello-e2e
chmod 755 /build/usr/bin/hello-e2e
dpkg-deb --build /build /tmp/hello.deb > /dev/null
export DEBIAN_FRONTEND=noninteractive
apt-get -qq install -y /tmp/hello.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
hello-e2e
dpkg-query --show --showformat '${db:Status-Status} ${Version}\n' hello-e2e
dpkg --verify hello-e2e
apt-get -qq purge -y hello-e2e > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
test ! -e /usr/bin/hello-e2e
dpkg --audit
echo gone
"#;
    let id = case.id();
    let run = case
        .run_debian(&["--rm"], &id, &["bash", "-c", script])?
        .within(deadlines::RUN * 2);
    assert_eq!(run.read()?, "hello from a package\ninstalled 1.0\ngone\n");
    Ok(())
}
