//! What is printed for people: colours where they help. Pure.
//!
//! Must not know what is printed.

/// Colours of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Good.
    Green,
    /// To be looked at.
    Yellow,
    /// Bad.
    Red,
}

/// Whether colours are written: on a terminal whose user has not asked for none (<https://no-color.org>).
pub fn colours(is_terminal: bool, no_color: Option<&std::ffi::OsStr>) -> bool {
    is_terminal && no_color.is_none_or(std::ffi::OsStr::is_empty)
}

/// A text in a colour, if there are any.
pub fn coloured(text: &str, colour: Colour, colours: bool) -> String {
    if !colours {
        return text.to_owned();
    }
    let number = match colour {
        Colour::Red => 31,
        Colour::Green => 32,
        Colour::Yellow => 33,
    };
    format!("\x1b[{number}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_a_terminal_whose_user_wants_them() {
        use std::ffi::OsStr;
        for (is_terminal, no_color, expected) in [
            (true, None, true),
            (false, None, false),
            (true, Some("1"), false),
            (true, Some(""), true),
        ] {
            assert_eq!(colours(is_terminal, no_color.map(OsStr::new)), expected);
        }
        assert_eq!(coloured("x", Colour::Red, false), "x");
        assert_eq!(coloured("x", Colour::Red, true), "\x1b[31mx\x1b[0m");
    }
}
