//! The rules of the guest's packet filter. Its programs and modules are in a kit beside the guest's image, which is sent when the
//! guest wants it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use agent_protocol as p;

use super::Subject;
use crate::aside::aside;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

/// Name of the kit, in the directory of the guest's image.
const KIT: &str = "iptables.img";

/// Prints the rules, or replaces them; in either case what iptables has printed.
pub(super) async fn ask(subject: &Subject, v6: bool, rules: Option<Vec<u8>>) -> Result<String> {
    if let Some(rules) = &rules
        && rules.len() > p::MAX_RULES
    {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "{} bytes of rules; at most {} are taken",
                rules.len(),
                p::MAX_RULES
            ),
        ));
    }
    let first = send(subject, v6, rules.clone(), Vec::new()).await?;
    if !first.wants_kit {
        return Ok(shown(&first.rules));
    }
    let path = subject.about.initrd.with_file_name(KIT);
    let kit = aside(subject.config.agent.request_timeout, move |site| {
        site.at(&path)?;
        read(&path)
    });
    let second = send(subject, v6, rules, kit.await?).await?;
    match second.wants_kit {
        false => Ok(shown(&second.rules)),
        true => Err(Error::new(
            ErrorKind::Internal,
            "the guest wants the kit for iptables again that it was sent",
        )),
    }
}

async fn send(
    subject: &Subject,
    v6: bool,
    rules: Option<Vec<u8>>,
    kit: Vec<u8>,
) -> Result<p::IptablesResponse> {
    let limit = Some(deadlines::ADMIN_WORK);
    let answer = match rules {
        None => {
            let request = p::GetIptablesRequest {
                v6,
                kit,
                ..Default::default()
            };
            subject.agent.get_iptables(request, limit).await
        }
        Some(rules) => {
            let request = p::SetIptablesRequest {
                v6,
                rules,
                kit,
                ..Default::default()
            };
            subject.agent.set_iptables(request, limit).await
        }
    };
    Ok(answer?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let unusable = |cause: Box<dyn std::error::Error + Send + Sync>| {
        let text = format!(
            "what the guest needs for iptables, {}, cannot be sent: `make guest` makes it beside the guest's image",
            path.display()
        );
        Error::caused(ErrorKind::FailedPrecondition, text, cause)
    };
    let mut kit = Vec::new();
    let read = File::open(path).and_then(|file| file.take(p::MAX_KIT as u64 + 1).read_to_end(&mut kit));
    match read {
        Err(cause) => Err(unusable(cause.into())),
        Ok(0) => Err(unusable("it is empty".into())),
        Ok(length) if length > p::MAX_KIT => {
            Err(unusable(format!("it has more than {} bytes", p::MAX_KIT).into()))
        }
        Ok(_) => Ok(kit),
    }
}

/// What a hostile guest says, without what a terminal would obey.
fn shown(rules: &[u8]) -> String {
    let rules = rules.get(..p::MAX_RULES).unwrap_or(rules);
    let is_harmless = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    String::from_utf8_lossy(rules)
        .chars()
        .filter(is_harmless)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kit_is_whole_or_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KIT);
        let refused = |path: &Path| read(path).unwrap_err();
        assert!(
            refused(&path).chain().contains("make guest"),
            "{}",
            refused(&path)
        );
        for (length, is_sent) in [(0, false), (1, true), (p::MAX_KIT, true), (p::MAX_KIT + 1, false)] {
            std::fs::write(&path, vec![0; length]).unwrap();
            assert_eq!(read(&path).is_ok(), is_sent, "{length}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_left_out() {
        assert_eq!(
            shown(b"*filter\n:A \x1b[31mB\t\x07\xff\n"),
            "*filter\n:A [31mB\t\u{fffd}\n"
        );
        assert_eq!(shown(&vec![b'a'; p::MAX_RULES + 5]).len(), p::MAX_RULES);
    }
}
