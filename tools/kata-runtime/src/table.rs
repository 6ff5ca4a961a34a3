//! What is printed for people: aligned columns, and colours where they help. Pure.
//!
//! Must not know what is printed.

use std::fmt::Write as _;

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

/// Rows below their titles, each column as wide as its widest cell; the last one has no blanks after it.
pub fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = titles.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(titles);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
    text
}

/// A number of bytes with a unit, as `free -h` has it: three digits are enough to compare by.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut units = UNITS.iter().peekable();
    while let Some(unit) = units.next() {
        if value < 1000.0 || units.peek().is_none() {
            let digits = if value < 10.0 {
                2
            } else {
                usize::from(value < 100.0)
            };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    number.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_is_behind_the_last() {
        let rows = [
            ["a".to_owned(), "1".to_owned(), "x".to_owned()],
            ["longer".to_owned(), String::new(), String::new()],
        ];
        assert_eq!(
            table(["ID", "COUNT", "WHAT"], &rows),
            "ID      COUNT  WHAT\na       1      x\nlonger\n"
        );
    }

    #[test]
    fn bytes_have_three_digits() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 * 1024 + 512, "10.5 KiB"),
            (128 << 20, "128 MiB"),
            (1023 << 20, "1.00 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

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
