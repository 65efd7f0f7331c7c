//! The slow work that the cache saves: reading every Rust file of a package, token by token.

use std::path::Path;
use std::{fs, io};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde::{Deserialize, Serialize};

/// What a scan finds in one package.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) files: u64,
    pub(crate) lines: u64,
    pub(crate) functions: u64,
    pub(crate) unsafe_blocks: u64,
    /// Files that are not Rust by themselves, such as templates: only their lines are counted.
    pub(crate) unreadable: u64,
}

/// Scans all Rust files below `root`.
pub(crate) fn scan(root: &Path) -> io::Result<Report> {
    let mut report = Report::default();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
                report.add_file(&String::from_utf8_lossy(&fs::read(path)?));
            }
        }
    }
    Ok(report)
}

impl Report {
    fn add_file(&mut self, source: &str) {
        self.files += 1;
        self.lines += source.lines().count() as u64;
        match without_shebang(source).parse() {
            Ok(tokens) => self.add_tokens(tokens),
            Err(_) => self.unreadable += 1,
        }
    }

    /// Counts on tokens, so that comments, documentation and strings do not count, and code inside macros does.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut streams = vec![tokens];
        while let Some(stream) = streams.pop() {
            let mut previous = None;
            for token in stream {
                match &token {
                    // `unsafe {`, not `unsafe fn` or `unsafe impl`.
                    TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                        self.unsafe_blocks += u64::from(is_word(previous.as_ref(), "unsafe"));
                    }
                    // `fn name`, not the type `fn(u8)`.
                    TokenTree::Ident(_) => self.functions += u64::from(is_word(previous.as_ref(), "fn")),
                    _ => {}
                }
                if let TokenTree::Group(group) = &token {
                    streams.push(group.stream());
                }
                previous = Some(token);
            }
        }
    }
}

fn is_word(token: Option<&TokenTree>, word: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == word)
}

/// A script's first line, `#!/usr/bin/env …`, is no Rust; the attribute `#![…]` is.
fn without_shebang(source: &str) -> &str {
    match source.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") && !first.starts_with("#![") => rest,
        _ => source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(source: &str) -> Report {
        let mut report = Report::default();
        report.add_file(source);
        report
    }

    #[test]
    fn counts_functions_and_unsafe_blocks() {
        let found = report(
            "fn a() { unsafe { b() } }\nunsafe fn b() {}\nunsafe impl Send for X {}\n\
             trait T { fn c(&self, f: fn(u8) -> u8); }\nmacro_rules! m { () => { unsafe { fn d() {} } } }\n",
        );
        let expected = Report { files: 1, lines: 5, functions: 4, unsafe_blocks: 2, unreadable: 0 };
        assert_eq!(found, expected);
    }

    #[test]
    fn ignores_comments_documentation_and_strings() {
        let found = report(
            "//! unsafe { fn doc() }\n/* unsafe { /* nested */ } fn x */\nconst A: &str = \"unsafe { fn y }\";\n\
             const B: &str = r#\"unsafe { \" fn z }\"#; // 'a' unsafe {}\nconst C: char = '\"';\nstruct S<'a>(&'a u8);\n",
        );
        assert_eq!((found.functions, found.unsafe_blocks, found.unreadable), (0, 0, 0));
        assert_eq!(found.lines, 6);
    }

    #[test]
    fn files_that_are_no_rust_count_as_unreadable() {
        let found = report("fn {{name}}() {\n");
        assert_eq!((found.files, found.lines, found.functions, found.unreadable), (1, 1, 0, 1));
        assert_eq!(report("#!/usr/bin/env run-cargo-script\nfn main() {}\n").functions, 1);
    }
}
