//! The documented `configuration.toml`, from the documentation of the settings. Pure.

use std::fmt::Write as _;

use crate::keys::{self, PREFIX};

/// What a reader should know before the first key.
const HEAD: &str = "\
# Configuration of the runtime: containers in virtual machines of their own.
#
# This file is generated, and what it sets is what is built in. To change something, either copy it to
# /etc/kata-containers/configuration.toml and edit the copy, or write only what is to be different to a file
# config.d/<name>.toml beside it: those are laid over it in the order of their names, tables are merged, other values
# replaced. What is read is the first of: the file that KATA_CONF_FILE names, the file that the caller names
# (containerd's ConfigPath), /etc/kata-containers/configuration.toml, and share/defaults/kata-containers/configuration.toml
# below the prefix of the program, below /usr and below /usr/local.
#
# Names are Kata's where the meaning is the same. A key that Kata has and this runtime does not is an error that says
# so, and so is an unknown key, a wrong value, or a combination that can't work.
";

/// The whole file.
pub(crate) fn template() -> String {
    let mut text = HEAD.to_owned();
    let mut last = "";
    for (table, setting) in keys::settings() {
        if table != last {
            let _ = write!(text, "\n[{table}]\n");
            last = table;
        }
        text.push('\n');
        for line in setting.doc {
            let _ = writeln!(text, "#{line}");
        }
        let takes = (setting.takes)();
        if takes != "true or false" {
            let _ = writeln!(text, "# It takes {takes}.");
        }
        if let Some(annotation) = setting.annotation {
            let _ = writeln!(text, "# Annotation: {PREFIX}{annotation}");
        }
        let _ = writeln!(text, "{} = {}", setting.key, setting.default);
    }
    text
}
