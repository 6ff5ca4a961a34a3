//! Names and numbers of signals as callers write them. Pure.

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

/// The last real-time signal.
const MAX: u32 = 64;

/// The first real-time signal that glibc leaves to programs.
const RTMIN: u32 = 34;

/// The number of a signal: `9`, `KILL`, `sigkill`, `RTMIN+3`, `RTMAX-1`.
///
/// # Errors
/// There is no such signal.
pub fn number(text: &str) -> Result<u32> {
    if let Ok(number) = text.parse::<u32>() {
        if number <= MAX {
            return Ok(number);
        }
        bail!("{number} is not a signal: 0 to {MAX} are");
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match real_time(name) {
        Some(number) => Ok(number),
        None => match format!("SIG{name}").parse::<Signal>() {
            Ok(signal) => Ok((signal as i32).unsigned_abs()),
            Err(_) => bail!("{text:?} is not a signal: name one (TERM, SIGTERM), or its number"),
        },
    }
}

fn real_time(name: &str) -> Option<u32> {
    let offset = |text: &str| match text {
        "" => Some(0),
        text => text.get(1..)?.parse::<u32>().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) if rest.is_empty() || rest.starts_with('+') => RTMIN.checked_add(offset(rest)?)?,
        (_, Some(rest)) if rest.is_empty() || rest.starts_with('-') => MAX.checked_sub(offset(rest)?)?,
        _ => return None,
    };
    (RTMIN..=MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, expected) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("Usr1", 10),
            ("0", 0),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        for text in [
            "", "65", "-1", "SIG", "NOTHING", "RTMIN+40", "RTMIN-1", "RTMAX+1", "é",
        ] {
            assert!(number(text).is_err(), "{text:?}");
        }
    }
}
