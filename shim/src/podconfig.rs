//! A pod's configuration, as the CRI's plugin of containerd 2 hands it on with a sandbox: as much of `PodSandboxConfig`
//! (k8s.io/cri-api, runtime/v1/api.proto) as makes a virtual machine. Pure.

use protobuf::CodedInputStream;
use protobuf::well_known_types::any::Any;
use runtime::model::{Dns, PodConfig, PodLimits};

/// Name of the message; a caller may send another one, as its options for this runtime.
const NAME: &str = "PodSandboxConfig";

/// Most bytes of a message: of its labels and annotations Kubernetes takes 256 KiB.
const MAX_BYTES: usize = 1 << 20;

/// How a field of some number is written: a length and so many bytes, or a number.
const fn bytes(number: u32) -> u32 {
    number << 3 | 2
}
const fn number(number: u32) -> u32 {
    number << 3
}

// PodSandboxConfig.
const HOSTNAME: u32 = bytes(2);
const DNS: u32 = bytes(4);
const ANNOTATIONS: u32 = bytes(7);
const LINUX: u32 = bytes(8);
// DNSConfig.
const SERVERS: u32 = bytes(1);
const SEARCHES: u32 = bytes(2);
const OPTIONS: u32 = bytes(3);
// LinuxPodSandboxConfig.
const CGROUP_PARENT: u32 = bytes(1);
const SYSCTLS: u32 = bytes(3);
const RESOURCES: u32 = bytes(5);
// LinuxContainerResources.
const CPU_PERIOD: u32 = number(1);
const CPU_QUOTA: u32 = number(2);
const CPU_SHARES: u32 = number(3);
const MEMORY: u32 = number(4);
// An entry of a map.
const KEY: u32 = bytes(1);
const VALUE: u32 = bytes(2);

/// The pod that options tell of; nothing of it if they are something else.
///
/// # Errors
/// They are damaged, or too large.
pub fn read(options: Option<&Any>) -> Result<PodConfig, String> {
    let mut pod = PodConfig::default();
    let Some(options) = options.filter(|options| is_ours(&options.type_url)) else {
        return Ok(pod);
    };
    let damaged = |what: String| format!("the pod's configuration ({}) {what}", options.type_url);
    if options.value.len() > MAX_BYTES {
        return Err(damaged(format!("is larger than {MAX_BYTES} bytes")));
    }
    config(&options.value, &mut pod).map_err(|error| damaged(format!("is damaged: {error}")))?;
    Ok(pod)
}

fn is_ours(type_url: &str) -> bool {
    type_url.rsplit(['/', '.']).next() == Some(NAME)
}

/// Reads a message field by field: `take` says whether it has taken the field.
fn fields(
    message: &[u8],
    mut take: impl FnMut(u32, &mut CodedInputStream<'_>) -> protobuf::Result<bool>,
) -> protobuf::Result<()> {
    let mut input = CodedInputStream::from_bytes(message);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        if !take(tag, &mut input)? {
            protobuf::rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(())
}

fn config(message: &[u8], pod: &mut PodConfig) -> protobuf::Result<()> {
    fields(message, |tag, input| {
        match tag {
            HOSTNAME => pod.hostname = input.read_string()?,
            DNS => dns(&input.read_bytes()?, &mut pod.dns)?,
            ANNOTATIONS => pod.annotations.extend([entry(&input.read_bytes()?)?]),
            LINUX => linux(&input.read_bytes()?, pod)?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn dns(message: &[u8], dns: &mut Dns) -> protobuf::Result<()> {
    fields(message, |tag, input| {
        let list = match tag {
            SERVERS => &mut dns.servers,
            SEARCHES => &mut dns.searches,
            OPTIONS => &mut dns.options,
            _ => return Ok(false),
        };
        list.push(input.read_string()?);
        Ok(true)
    })
}

fn linux(message: &[u8], pod: &mut PodConfig) -> protobuf::Result<()> {
    fields(message, |tag, input| {
        match tag {
            CGROUP_PARENT => pod.cgroup_parent = input.read_string()?,
            SYSCTLS => pod.sysctls.extend([entry(&input.read_bytes()?)?]),
            RESOURCES => limits(&input.read_bytes()?, &mut pod.limits)?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn limits(message: &[u8], limits: &mut PodLimits) -> protobuf::Result<()> {
    fields(message, |tag, input| {
        // What is negative limits nothing.
        let mut positive = || Ok::<_, protobuf::Error>(u64::try_from(input.read_int64()?).unwrap_or(0));
        match tag {
            CPU_PERIOD => limits.cpu_period = positive()?,
            CPU_QUOTA => limits.cpu_quota = input.read_int64()?,
            CPU_SHARES => limits.cpu_shares = positive()?,
            MEMORY => limits.memory = input.read_int64()?,
            _ => return Ok(false),
        }
        Ok(true)
    })
}

fn entry(message: &[u8]) -> protobuf::Result<(String, String)> {
    let (mut key, mut value) = (String::new(), String::new());
    fields(message, |tag, input| {
        match tag {
            KEY => key = input.read_string()?,
            VALUE => value = input.read_string()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TYPE: &str = "runtime.v1.PodSandboxConfig";

    fn packed(value: Vec<u8>) -> Any {
        Any {
            type_url: TYPE.into(),
            value,
            ..Default::default()
        }
    }

    fn field(tag: u32, content: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::try_from(tag).unwrap(), u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn pair(key: &str, value: &str) -> Vec<u8> {
        [field(KEY, key.as_bytes()), field(VALUE, value.as_bytes())].concat()
    }

    #[test]
    fn what_makes_a_machine_is_read_and_the_rest_passed_over() {
        let limits = [0x08, 100, 0x10, 50, 0x18, 2, 0x20, 0x80, 0x01, 0x28, 9];
        let linux = [
            field(CGROUP_PARENT, b"/kubepods"),
            field(bytes(2), b""),
            field(SYSCTLS, &pair("a.b", "1")),
            field(RESOURCES, &limits),
        ]
        .concat();
        let dns = [
            field(SERVERS, b"10.0.0.1"),
            field(SERVERS, b"10.0.0.2"),
            field(SEARCHES, b"x.example"),
            field(OPTIONS, b"ndots:1"),
        ]
        .concat();
        let message = [
            field(bytes(1), &pair("name", "x")),
            field(HOSTNAME, b"web"),
            field(DNS, &dns),
            field(ANNOTATIONS, &pair("k", "v")),
            field(LINUX, &linux),
        ]
        .concat();
        let pod = read(Some(&packed(message))).unwrap();
        assert_eq!(
            (pod.hostname.as_str(), pod.cgroup_parent.as_str()),
            ("web", "/kubepods")
        );
        assert_eq!(pod.dns.servers, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!((pod.dns.searches.len(), pod.dns.options.len()), (1, 1));
        assert_eq!(pod.sysctls.get("a.b").map(String::as_str), Some("1"));
        assert_eq!(pod.annotations.get("k").map(String::as_str), Some("v"));
        let expected = PodLimits {
            cpu_quota: 50,
            cpu_period: 100,
            cpu_shares: 2,
            memory: 128,
        };
        assert_eq!(pod.limits, expected);
    }

    #[test]
    fn other_options_tell_nothing_and_damaged_ones_are_named() {
        assert_eq!(read(None), Ok(PodConfig::default()));
        let other = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: field(HOSTNAME, b"x"),
            ..Default::default()
        };
        assert_eq!(read(Some(&other)), Ok(PodConfig::default()));
        let error = read(Some(&packed(vec![0x12, 9, b'x']))).unwrap_err();
        assert!(error.contains(TYPE) && error.contains("damaged"), "{error}");
        assert!(
            read(Some(&packed(vec![0; MAX_BYTES + 1])))
                .unwrap_err()
                .contains("larger")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_pod_or_an_error(value in prop::collection::vec(any::<u8>(), 0..96)) {
            let _ = read(Some(&packed(value)));
        }
    }
}
