//! Style as a test: what a review would say about every file is said here once.
//!
//! Arrows between modules (the layers of ARCHITECTURE.md), module heads, calls that would tie the code to one machine
//! or make a simulation irreproducible, long functions, wide comments, and words that mean nothing outside the machine
//! they were written on.
//!
//! Every check is a function from text to findings, so that the tests at the end can show it failing. Exceptions stand
//! in the tables right below, each with its reason; an exception that is no longer needed is itself a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a layer that stands beside the server may use, instead of everything below it. Module, what it uses, why.
const BESIDE: &str = "users";
const BESIDE_MAY_USE_LAYERS: &[&str] = &["words", "ground", "wire", "users"];
const BESIDE_MAY_USE: &[(&str, &str, &str)] = &[
    ("*", "ring", "clients send a request to a server that holds the key"),
    ("*", "coordinator::level", "the names and numbers of levels"),
    ("*", "coordinator::Level", "the same, re-exported"),
    ("inspect", "store", "`--offline` reads a stopped server's files"),
];

/// Code that may do what [`BANNED`] says others may not. File, or folder with a slash at its end; what; why.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("src/clock.rs", "std::time::SystemTime", "the only wall clock"),
    ("src/net.rs", "tokio::net", "the only socket types"),
    ("src/bin/", "*", "programs stand outside the simulation"),
    ("src/console/", "*", "a person's terminal stands outside the simulation"),
];

/// Paths that are passed in or wrapped, never fetched. Path (and everything under it), what to use.
const BANNED: &[(&str, &str)] = &[
    ("std::time::SystemTime", "clock::Clock, handed in"),
    ("std::time::Instant", "tokio::time::Instant, which a simulation can pause"),
    ("std::net::TcpListener", "net"),
    ("std::net::TcpStream", "net"),
    ("std::net::UdpSocket", "net"),
    ("tokio::net", "net"),
    ("tokio::task::spawn_blocking", "a thread of one's own that a simulation can drive"),
    ("rand::thread_rng", "a seeded generator, handed in"),
    ("fastrand::Rng::new", "fastrand::Rng::with_seed, the seed handed in"),
];

/// Lines of the longest function. Beyond a screen there is a dispatch inside whose arms deserve names.
const FUNCTION_LINES_MAX: usize = 100;

/// Columns of a comment, so that two files can be read beside each other. (rustfmt sees to the code.)
const COMMENT_COLUMNS_MAX: usize = 120;

/// Longer functions that exist: file, name, lines. The number may only shrink.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

/// Written by the Thrift compiler.
const GENERATED: &[&str] = &["src/thrift/chord.rs", "tests/interop/gen-py/", "tests/interop/gen-nodejs/"];

type Findings = Vec<String>;

// ------------------------------------------------------------------------------------------------ the tests

#[test]
fn arrows_between_modules_point_one_way() {
    let layers = Layers::parse(&read("ARCHITECTURE.md")).expect("ARCHITECTURE.md has the table of layers");
    let mut findings = Findings::new();
    let mut used = BTreeSet::new();
    for source in sources().iter().filter(|source| !source.name.starts_with("src/bin/")) {
        let Some(module) = module_of(&source.name) else { continue };
        findings.extend(layers.check(&module, source, &mut used));
    }
    assert_none(findings);
}

#[test]
fn every_file_says_why_it_exists() {
    assert_none(sources().iter().filter_map(head_missing).collect());
}

#[test]
fn comments_fit_beside_each_other() {
    assert_none(sources().iter().flat_map(wide_comments).collect());
}

#[test]
fn time_chance_and_sockets_are_handed_in() {
    let mut findings = Findings::new();
    let mut used = BTreeSet::new();
    let sources = sources();
    let tests = test_files(&sources);
    for source in sources.iter().filter(|source| !tests.contains(&source.name)) {
        findings.extend(banned_paths(source, &mut used));
    }
    for (index, (place, what, _)) in ALLOWED.iter().enumerate() {
        let exists = sources.iter().any(|source| source.name.starts_with(place));
        if exists && *what != "*" && !used.contains(&index) {
            findings.push(format!("{place} no longer uses {what}: strike it from ALLOWED"));
        }
    }
    assert_none(findings);
}

#[test]
fn every_select_is_biased() {
    assert_none(sources().iter().flat_map(unbiased_selects).collect());
}

#[test]
fn nothing_is_left_half_done() {
    assert_none(sources().iter().flat_map(half_done).collect());
}

#[test]
fn what_stats_lists_is_counted() {
    let sources = sources();
    let tests = test_files(&sources);
    let is_test = |name: &str| tests.contains(name) || name.contains("/tests/");
    let (stats, others): (Vec<&Source>, Vec<&Source>) = sources
        .iter()
        .filter(|source| !is_test(&source.name))
        .partition(|source| source.name == "src/stats.rs");
    let listed = listed_stats(&stats[0].code);
    assert!(listed.len() > 10, "src/stats.rs lists what is counted");
    let is_counted = |name: &str| others.iter().any(|source| uses_field(&without_tests(&source.code), name));
    let uncounted = listed.into_iter().filter(|name| !is_counted(name));
    assert_none(
        uncounted.map(|name| format!("{name} stands in src/stats.rs, but nothing counts it")).collect(),
    );
}

#[test]
fn functions_fit_on_a_screen_or_two() {
    let mut findings = Findings::new();
    let mut long = BTreeMap::new();
    for source in &sources() {
        for function in functions(source) {
            if function.lines > FUNCTION_LINES_MAX {
                long.insert((source.name.clone(), function.name.clone()), function.lines);
            }
        }
    }
    findings.extend(ratchet(&long, LONG_FUNCTIONS));
    assert_none(findings);
}

#[test]
fn texts_mean_the_same_on_every_machine() {
    let mut findings = Findings::new();
    for path in texts() {
        let name = relative(&path);
        if let Ok(text) = fs::read_to_string(&path) {
            findings.extend(private_words(&name, &text));
        }
    }
    assert_none(findings);
}

fn assert_none(findings: Findings) {
    assert!(findings.is_empty(), "{} finding(s):\n  {}", findings.len(), findings.join("\n  "));
}

// ------------------------------------------------------------------------------------------------ arrows

/// The table of layers in ARCHITECTURE.md, lowest first.
struct Layers {
    names: Vec<String>,
    /// Module to index of its layer.
    of: BTreeMap<String, usize>,
}

impl Layers {
    /// Reads the rows `| layer | `module` `module` (remark) |` of the table headed `| layer | modules |`.
    fn parse(text: &str) -> Option<Layers> {
        let mut rows =
            text.lines().skip_while(|line| !line.replace(' ', "").starts_with("|layer|modules|")).skip(2);
        let mut layers = Layers { names: Vec::new(), of: BTreeMap::new() };
        for row in rows.by_ref().take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let modules = cells.get(1)?.split('(').next()?;
            for module in modules.split('`').skip(1).step_by(2) {
                layers.of.insert(module.to_owned(), layers.names.len());
            }
            layers.names.push(cells[0].to_owned());
        }
        (!layers.of.is_empty()).then_some(layers)
    }

    fn check(&self, module: &str, source: &Source, used: &mut BTreeSet<usize>) -> Findings {
        let Some(&own) = self.of.get(module) else {
            return vec![format!("{}: `{module}` has no layer in ARCHITECTURE.md", source.name)];
        };
        let mut findings = Findings::new();
        for path in crate_paths(source) {
            let target = &path.segments[0];
            if target == module {
                continue;
            }
            let Some(&layer) = self.of.get(target) else {
                let top = path.segments.join("::");
                findings.push(format!("{}:{}: crate::{top} is in no layer", source.name, path.line));
                continue;
            };
            if !self.permits(module, own, &path.segments, layer, used) {
                findings.push(format!(
                    "{}:{}: `{module}` ({}) uses `{}` ({}); arrows go to the own or a lower layer",
                    source.name,
                    path.line,
                    self.names[own],
                    path.segments.join("::"),
                    self.names[layer]
                ));
            }
        }
        findings
    }

    fn permits(
        &self,
        module: &str,
        own: usize,
        path: &[String],
        layer: usize,
        used: &mut BTreeSet<usize>,
    ) -> bool {
        if self.names[own] != BESIDE {
            return layer <= own && self.names[layer] != BESIDE;
        }
        if BESIDE_MAY_USE_LAYERS.contains(&self.names[layer].as_str()) {
            return true;
        }
        let path = path.join("::");
        let exception = BESIDE_MAY_USE
            .iter()
            .position(|(who, what, _)| (*who == "*" || *who == module) && is_under(&path, what));
        used.extend(exception);
        exception.is_some()
    }
}

/// `src/store/base.rs` is of module `store`; `src/lib.rs` of none.
fn module_of(name: &str) -> Option<String> {
    let rest = name.strip_prefix("src/")?;
    let first = rest.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (module != "lib").then(|| module.to_owned())
}

/// How many modules deep a file is: `src/store.rs` and `src/store/mod.rs` 1, `src/store/base.rs` 2.
fn depth_of(name: &str) -> usize {
    let rest = name.strip_prefix("src/").unwrap_or(name);
    rest.split('/').filter(|part| *part != "mod.rs").count()
}

/// Every path from the crate's root, written as `crate::…` or as enough `super::`.
fn crate_paths(source: &Source) -> Vec<CodePath> {
    let depth = depth_of(&source.name);
    let from_root = |mut path: CodePath| {
        let supers = path.segments.iter().take_while(|segment| *segment == "super").count();
        let skip = match path.segments[0].as_str() {
            "crate" => 1,
            _ if supers > 0 && supers >= depth + path.modules => supers,
            _ => return None,
        };
        path.segments.drain(..skip);
        (!path.segments.is_empty() && path.segments[0] != "*").then_some(path)
    };
    paths(&source.code).into_iter().filter_map(from_root).collect()
}

// ------------------------------------------------------------------------------------------------ other checks

fn head_missing(source: &Source) -> Option<String> {
    let head = source.text.starts_with("//! ");
    (!head).then(|| {
        format!("{}: starts without `//!` (why it exists, what must hold, what is not here)", source.name)
    })
}

fn wide_comments(source: &Source) -> Findings {
    let is_wide = |line: &str| {
        let columns = line.chars().count();
        columns > COMMENT_COLUMNS_MAX && line.trim_start().starts_with("//")
    };
    let wide = source.text.lines().enumerate().filter(|(_, line)| is_wide(line));
    wide.map(|(at, _)| format!("{}:{}: a comment of over {COMMENT_COLUMNS_MAX} columns", source.name, at + 1))
        .collect()
}

fn banned_paths(source: &Source, used: &mut BTreeSet<usize>) -> Findings {
    let mut findings = Findings::new();
    for path in paths(&without_tests(&source.code)) {
        let joined = path.segments.join("::");
        let banned = BANNED.iter().find(|(banned, _)| is_under(&joined, banned));
        let banned = banned.copied().or_else(|| banned_tail(&path.segments));
        let Some((what, instead)) = banned else { continue };
        let allowed = ALLOWED.iter().position(|(place, allowed, _)| {
            source.name.starts_with(place) && (*allowed == "*" || *allowed == what)
        });
        match allowed {
            Some(index) => {
                used.insert(index);
            }
            None => findings
                .push(format!("{}:{}: {joined} is not for use here: {instead}", source.name, path.line)),
        }
    }
    findings
}

/// Calls known by their last words, whatever they were imported as.
fn banned_tail(segments: &[String]) -> Option<(&'static str, &'static str)> {
    let tail =
        |words: &[&str]| segments.ends_with(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    if tail(&["SystemTime", "now"]) {
        return Some(("std::time::SystemTime", "clock::Clock, handed in"));
    }
    if tail(&["spawn_blocking"]) || tail(&["thread_rng"]) {
        return Some(("a global", "a thread, or a seeded generator, that is handed in"));
    }
    let function =
        segments.len() == 2 && segments[0] == "fastrand" && segments[1].starts_with(char::is_lowercase);
    function.then_some(("fastrand's global generator", "fastrand::Rng::with_seed, the seed handed in"))
}

fn unbiased_selects(source: &Source) -> Findings {
    let mut findings = Findings::new();
    for (at, _) in source.code.match_indices("select!") {
        let inside =
            source.code[at + "select!".len()..].trim_start().trim_start_matches(['{', '(']).trim_start();
        if !inside.starts_with("biased") {
            let line = line_at(&source.code, at);
            findings
                .push(format!("{}:{line}: select! without `biased;` takes a branch by chance", source.name));
        }
    }
    findings
}

fn half_done(source: &Source) -> Findings {
    let mut findings = Findings::new();
    for word in ["todo!", "unimplemented!", "dbg!"] {
        for (at, _) in source.code.match_indices(word) {
            if !source.code[..at].ends_with(is_word) {
                findings.push(format!("{}:{}: {word}", source.name, line_at(&source.code, at)));
            }
        }
    }
    findings
}

struct Function {
    name: String,
    lines: usize,
}

/// Every function with a body, and the lines from its `fn` to its closing brace.
fn functions(source: &Source) -> Vec<Function> {
    let code = &source.code;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| is_word(*c)).collect();
        let Some(open) = code[at..].find(['{', ';']).map(|offset| at + offset) else { continue };
        if name.is_empty() || code[open..].starts_with(';') {
            continue;
        }
        if let Some(close) = closing_brace(code, open) {
            found.push(Function { name, lines: line_at(code, close) - line_at(code, at) + 1 });
        }
    }
    found
}

/// Functions too long that are not listed, listed ones that grew, and listings that are no longer needed.
fn ratchet(long: &BTreeMap<(String, String), usize>, listed: &[(&str, &str, usize)]) -> Findings {
    let mut findings = Findings::new();
    for ((file, name), lines) in long {
        match listed.iter().find(|(f, n, _)| f == file && n == name) {
            None => findings.push(format!("{file}: {name} has {lines} lines; give its parts names")),
            Some((_, _, max)) if lines > max => {
                findings.push(format!("{file}: {name} grew from {max} to {lines} lines"));
            }
            Some(_) => {}
        }
    }
    for (file, name, max) in listed {
        match long.get(&((*file).to_owned(), (*name).to_owned())) {
            None => findings.push(format!("{file}: {name} is short now: strike it from LONG_FUNCTIONS")),
            Some(lines) if lines < max => {
                findings.push(format!(
                    "{file}: {name} has {lines} lines now: lower its number in LONG_FUNCTIONS"
                ));
            }
            Some(_) => {}
        }
    }
    findings
}

/// Folders that exist on the machine of whoever wrote, and numbers of an issue list that a clone does not have.
fn private_words(name: &str, text: &str) -> Findings {
    let mut findings = Findings::new();
    for (index, line) in text.lines().enumerate() {
        for folder in [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")] {
            if line.contains(folder) {
                findings.push(format!("{name}:{}: {folder} is a folder of one machine", index + 1));
            }
        }
        if names_an_issue(line) {
            findings
                .push(format!("{name}:{}: speaks of an issue by number; say what it is about", index + 1));
        }
    }
    findings
}

/// The word with a number behind it, or a verb that closes one.
fn names_an_issue(line: &str) -> bool {
    let line = line.to_lowercase();
    let numbered = |rest: &str, marks: &[char]| {
        let digits = rest.trim_start_matches(marks);
        digits.len() < rest.len() && digits.starts_with(|c: char| c.is_ascii_digit())
    };
    let issue = line.match_indices("issue").any(|(at, word)| {
        let rest = &line[at + word.len()..];
        numbered(rest.strip_prefix('s').unwrap_or(rest), &[' ', '#', '/', '-'])
    });
    let verb = ["fixes #", "closes #", "resolves #"].iter().any(|verb| {
        line.match_indices(verb)
            .any(|(at, _)| line[at + verb.len()..].starts_with(|c: char| c.is_ascii_digit()))
    });
    issue || verb
}

// ------------------------------------------------------------------------------------------------ reading code

/// One file of `src`.
struct Source {
    /// From the repository's top, with slashes.
    name: String,
    text: String,
    /// The text with comments and the insides of literals blanked; every line where it was.
    code: String,
}

impl Source {
    fn new(name: &str, text: &str) -> Source {
        Source { name: name.to_owned(), text: text.to_owned(), code: blank(text) }
    }
}

/// Comments, strings and characters become spaces, so that braces and words left over are code.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(text, at);
        match end {
            Some(end) => {
                out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).expect("whole characters were blanked")
}

/// Where the comment or literal that begins at `at` ends; `None` if none begins there.
fn literal_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let rest = &bytes[at..];
    let after_word = at > 0 && (bytes[at - 1] == b'_' || bytes[at - 1].is_ascii_alphanumeric());
    match rest[0] {
        b'/' if rest.starts_with(b"//") => {
            Some(at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()))
        }
        b'/' if rest.starts_with(b"/*") => Some(block_comment_end(bytes, at)),
        b'"' => Some(string_end(bytes, at + 1)),
        b'b' if !after_word && rest.starts_with(b"b\"") => Some(string_end(bytes, at + 2)),
        b'r' | b'b' if !after_word => raw_string_end(bytes, at),
        b'\'' => char_end(text, at),
        _ => None,
    }
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0;
    let mut at = at;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at.min(bytes.len())
}

fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes[at..].strip_prefix(b"b").unwrap_or(&bytes[at..]);
    let rest = rest.strip_prefix(b"r")?;
    let hashes = rest.iter().take_while(|byte| **byte == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return None;
    }
    let from = bytes.len() - rest.len() + hashes + 1;
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let end = bytes[from..].windows(close.len()).position(|window| window == close)?;
    Some(from + end + close.len())
}

/// The end of a character literal; a lifetime has none.
fn char_end(text: &str, at: usize) -> Option<usize> {
    let mut chars = text[at + 1..].char_indices();
    let (_, first) = chars.next()?;
    if first == '\\' {
        let close = text[at + 3..].find('\'')?;
        return Some(at + 3 + close + 1);
    }
    match chars.next() {
        Some((offset, '\'')) => Some(at + 1 + offset + 1),
        _ => None,
    }
}

/// A path of at least two segments as it stands in the code, `use` groups spread out.
struct CodePath {
    segments: Vec<String>,
    line: usize,
    /// How many inline modules (`mod tests { … }`) it is inside.
    modules: usize,
}

fn paths(code: &str) -> Vec<CodePath> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut braces = 0usize;
    let mut modules: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (text, _) = tokens[at];
        match text {
            "mod" if tokens.get(at + 2).is_some_and(|(text, _)| *text == "{") => {
                braces += 1;
                modules.push(braces);
                at += 3;
                continue;
            }
            "{" => braces += 1,
            "}" => {
                if modules.last() == Some(&braces) {
                    modules.pop();
                }
                braces = braces.saturating_sub(1);
            }
            _ => {}
        }
        let begins = is_identifier(text) && (at == 0 || tokens[at - 1].0 != "::");
        if begins && tokens.get(at + 1).is_some_and(|(text, _)| *text == "::") {
            at = path_from(&tokens, at, Vec::new(), modules.len(), &mut found);
        } else {
            at += 1;
        }
    }
    for path in &mut found {
        path.line = line_at(code, path.line);
    }
    found
}

/// Reads one path, or one branch of a `use` tree, from token `at`; returns the token after it. Lines are offsets still.
fn path_from(
    tokens: &[(&str, usize)],
    mut at: usize,
    mut segments: Vec<String>,
    modules: usize,
    found: &mut Vec<CodePath>,
) -> usize {
    let start = tokens[at].1;
    while let Some((text, _)) = tokens.get(at) {
        if *text == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|(text, _)| *text != "}") {
                if tokens[at].0 == "as" || tokens[at].0 == "," {
                    at += 1 + usize::from(tokens[at].0 == "as");
                } else {
                    at = path_from(tokens, at, segments.clone(), modules, found);
                }
            }
            return at + 1;
        }
        segments.push((*text).to_owned());
        at += 1;
        let continues = tokens.get(at).is_some_and(|(text, _)| *text == "::")
            && tokens
                .get(at + 1)
                .is_some_and(|(text, _)| is_identifier(text) || *text == "{" || *text == "*");
        if !continues {
            break;
        }
        at += 1;
    }
    found.push(CodePath { segments, line: start, modules });
    at
}

/// Identifiers, `::` and single signs, with their offsets.
fn tokens(code: &str) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(c) = code[at..].chars().next() {
        let len = match c {
            _ if is_word(c) => code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at),
            ':' if code[at..].starts_with("::") => 2,
            _ => c.len_utf8(),
        };
        if !c.is_whitespace() {
            found.push((&code[at..at + len], at));
        }
        at += len;
    }
    found
}

/// The names in `stats! { … }`: each stands alone on its line.
fn listed_stats(code: &str) -> Vec<&str> {
    let block =
        code.split_once("\nstats! {").and_then(|(_, rest)| rest.split_once("\n}")).map(|(block, _)| block);
    let lines = block.unwrap_or_default().lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && line.chars().all(is_word)).collect()
}

/// True if a field of this name is used: `.name`, and no longer name.
fn uses_field(code: &str, name: &str) -> bool {
    let field = format!(".{name}");
    code.match_indices(&field).any(|(at, _)| !code[at + field.len()..].starts_with(is_word))
}

/// The code with the insides of `#[cfg(test)] mod … { … }` blanked.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for (at, mark) in code.match_indices("#[cfg(test)]") {
        let item = code[at + mark.len()..].trim_start();
        let item_at = code.len() - item.len();
        let Some(open) = code[item_at..].find(['{', ';']).map(|offset| item_at + offset) else { continue };
        if !item.starts_with("mod ") || code[open..].starts_with(';') {
            continue;
        }
        if let Some(close) = closing_brace(code, open) {
            let blank: String =
                code[open + 1..close].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
            if blank.len() == close - open - 1 {
                out.replace_range(open + 1..close, &blank);
            }
        }
    }
    out
}

/// Files that exist for tests only: `#[cfg(test)] mod fake;` in the module above them.
fn test_files(sources: &[Source]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for source in sources {
        let folder = match source.name.strip_suffix("/mod.rs").or(source.name.strip_suffix("/lib.rs")) {
            Some(folder) => folder,
            None => source.name.trim_end_matches(".rs"),
        };
        for (at, mark) in source.code.match_indices("#[cfg(test)]") {
            let item = source.code[at + mark.len()..].trim_start();
            let item = item.strip_prefix("pub ").or(item.strip_prefix("pub(crate) ")).unwrap_or(item);
            let Some((name, _)) = item.strip_prefix("mod ").and_then(|rest| rest.split_once(';')) else {
                continue;
            };
            found.insert(format!("{folder}/{name}.rs"));
            found.insert(format!("{folder}/{name}/mod.rs"));
        }
    }
    found
}

fn closing_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, byte) in code[open..].bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(open + offset),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn line_at(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| is_word(c) && !c.is_ascii_digit())
}

/// True for `what` itself and for everything inside it.
fn is_under(path: &str, what: &str) -> bool {
    path.strip_prefix(what).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

// ------------------------------------------------------------------------------------------------ files

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(top().join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"))
}

fn relative(path: &Path) -> String {
    let inside = path.strip_prefix(top()).expect("only files of this repository are walked");
    inside.to_string_lossy().replace('\\', "/")
}

/// Every Rust file of `src` that people wrote.
fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    walk(&top().join("src"), &mut files);
    let names = files.iter().map(|path| relative(path));
    let written = names.filter(|name| name.ends_with(".rs") && !GENERATED.contains(&name.as_str()));
    let sources: Vec<Source> = written.map(|name| Source::new(&name, &read(&name))).collect();
    assert!(sources.len() > 10, "src has Rust files");
    sources
}

/// Every file of the repository that people wrote and read.
fn texts() -> Vec<PathBuf> {
    const KINDS: [&str; 14] = [
        "rs", "md", "toml", "thrift", "sh", "py", "js", "json", "txt", "script", "yml", "yaml", "golden", "",
    ];
    let mut files = Vec::new();
    walk(top(), &mut files);
    files.retain(|path| {
        let kind = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let name = relative(path);
        KINDS.contains(&kind.as_str()) && !GENERATED.iter().any(|generated| name.starts_with(generated))
    });
    files
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    const SKIPPED: [&str; 6] =
        ["target", ".git", "data", "node_modules", "__pycache__", "proptest-regressions"];
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()))
        .map(|entry| entry.expect("a listed entry can be read").path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if SKIPPED.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

// ------------------------------------------------------------------------------------------------ the checks can fail

mod each_check_can_fail {
    use super::*;

    const TABLE: &str = "text\n| layer | modules |\n|---|---|\n| words | `cell` `key` |\n| parts | `ring` `store` |\n\
                         | deciding | `coordinator` |\n| users | `client` `inspect` (not `node`) |\n\nafter `x`\n";

    fn arrows(name: &str, text: &str) -> Findings {
        let layers = Layers::parse(TABLE).unwrap();
        layers.check(&module_of(name).unwrap(), &Source::new(name, text), &mut BTreeSet::new())
    }

    #[test]
    fn the_table_is_read_without_its_remarks() {
        let layers = Layers::parse(TABLE).unwrap();
        assert_eq!(layers.names, ["words", "parts", "deciding", "users"]);
        assert_eq!(
            layers.of.keys().collect::<Vec<_>>(),
            ["cell", "client", "coordinator", "inspect", "key", "ring", "store"]
        );
        assert!(Layers::parse("no table").is_none());
    }

    #[test]
    fn an_arrow_upwards_is_found_however_it_is_written() {
        for (name, text) in [
            ("src/cell.rs", "use crate::store::Store;"),
            ("src/cell.rs", "use crate::{key::Key, store::{Store, Disk}};"),
            ("src/cell.rs", "use crate::store;"),
            ("src/cell.rs", "fn f() { let s = crate::store::open(); }"),
            ("src/cell.rs", "use super::store::Store;"),
            ("src/cell.rs", "mod tests { use super::super::store::Store; }"),
            ("src/cell.rs", "mod tests { use crate::store::Store; }"),
            ("src/cell.rs", "macro_rules! m { () => { $crate::store::open() } }"),
            ("src/store/base.rs", "use super::super::coordinator::Level;"),
            ("src/store/mod.rs", "use super::coordinator;"),
            ("src/store/base.rs", "pub(crate) use crate::coordinator::Level as L;"),
            ("src/coordinator.rs", "use crate::client::Client;"),
            ("src/client/mod.rs", "use crate::store::Store;"),
            ("src/client/mod.rs", "use crate::coordinator::Coordinator;"),
        ] {
            assert!(!arrows(name, text).is_empty(), "{name}: {text}");
        }
    }

    #[test]
    fn arrows_downwards_and_sideways_are_fine() {
        for (name, text) in [
            ("src/store/base.rs", "use crate::{cell::Cell, key, ring::Ring};\nuse super::flush::Flush;"),
            ("src/store/base.rs", "mod tests { use super::*; use super::super::flush; }"),
            ("src/store.rs", "mod tests { use super::base; }"),
            (
                "src/cell.rs",
                "// use crate::store::Store;\n/* crate::store */ const S: &str = \"crate::store::x\";",
            ),
            ("src/cell.rs", "pub(crate) fn f() {}"),
            ("src/client/mod.rs", "use crate::coordinator::Level; use crate::ring::Ring; use crate::cell;"),
            ("src/inspect.rs", "use crate::store::Store; use crate::client::Client;"),
        ] {
            assert_eq!(arrows(name, text), Findings::new(), "{name}: {text}");
        }
    }

    #[test]
    fn a_module_without_a_layer_is_found() {
        assert_eq!(arrows("src/new.rs", "").len(), 1);
        assert_eq!(arrows("src/cell.rs", "use crate::new::X;").len(), 1);
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert!(head_missing(&Source::new("src/a.rs", "use x;\n")).is_some());
        assert!(head_missing(&Source::new("src/a.rs", "//! Why.\n")).is_none());
    }

    #[test]
    fn wide_comments_are_found() {
        let wide = |line: &str| wide_comments(&Source::new("src/a.rs", line)).len();
        assert_eq!(wide(&format!("// {}", "─".repeat(COMMENT_COLUMNS_MAX - 3))), 0);
        assert_eq!(wide(&format!("    /// {}", "x".repeat(COMMENT_COLUMNS_MAX))), 1);
        assert_eq!(wide(&format!("let x = \"{}\";", "x".repeat(COMMENT_COLUMNS_MAX))), 0);
    }

    #[test]
    fn fetched_time_chance_and_sockets_are_found() {
        for text in [
            "use std::time::{Duration, Instant};",
            "fn f() { std::time::Instant::now(); }",
            "fn f() { SystemTime::now(); }",
            "use tokio::net::TcpStream;",
            "use tokio::{net::TcpStream, time};",
            "use std::net::{IpAddr, TcpListener};",
            "fn f() { tokio::task::spawn_blocking(|| ()); }",
            "fn f() { rand::thread_rng(); }",
            "fn f() { fastrand::u64(..); }",
            "fn f() { fastrand::Rng::new(); }",
            "#[cfg(test)]\nmod tests { }\nfn f() { SystemTime::now(); }",
        ] {
            let found = banned_paths(&Source::new("src/a.rs", text), &mut BTreeSet::new());
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
        for text in [
            "use tokio::time::Instant;\nfn f() { Instant::now(); }",
            "use std::net::IpAddr;",
            "fn f(rng: &mut fastrand::Rng) { fastrand::Rng::with_seed(1); }",
            "#[cfg(test)]\nmod tests { fn f() { SystemTime::now(); } }",
            "// SystemTime::now()",
        ] {
            let found = banned_paths(&Source::new("src/a.rs", text), &mut BTreeSet::new());
            assert_eq!(found, Findings::new(), "{text}");
        }
    }

    #[test]
    fn what_is_allowed_in_one_file_is_found_in_another() {
        let text = "use std::time::SystemTime;";
        assert!(banned_paths(&Source::new("src/clock.rs", text), &mut BTreeSet::new()).is_empty());
        assert!(!banned_paths(&Source::new("src/clocks.rs", text), &mut BTreeSet::new()).is_empty());
    }

    #[test]
    fn what_is_listed_is_counted_by_its_whole_name() {
        let code = "macro_rules! stats { }\n\nstats! {\n    counters {\n        writes\n        reads\n    }\n}\nfn no() {}";
        assert_eq!(listed_stats(code), ["writes", "reads"]);
        assert!(uses_field("self.stats.writes.count();", "writes"));
        assert!(!uses_field("self.stats.writes_ok.count(); writes()", "writes"));
    }

    #[test]
    fn files_of_tests_are_known_by_their_declaration() {
        let sources = [Source::new("src/client/mod.rs", "#[cfg(test)]\nmod fake;\nmod link;")];
        assert!(test_files(&sources).contains("src/client/fake.rs"));
        assert!(!test_files(&sources).contains("src/client/link.rs"));
    }

    #[test]
    fn an_unbiased_select_is_found() {
        let found = |text| unbiased_selects(&Source::new("src/a.rs", text)).len();
        assert_eq!(found("tokio::select! { x = f() => {} }"), 1);
        assert_eq!(found("select! {\n // order matters\n biased;\n x = f() => {} }"), 0);
    }

    #[test]
    fn what_is_half_done_is_found() {
        let found = |text| half_done(&Source::new("src/a.rs", text)).len();
        assert_eq!(found("fn f() { todo!() }"), 1);
        assert_eq!(found("fn f() { unimplemented!(); dbg!(1); }"), 2);
        assert_eq!(found("// todo!()\nconst T: &str = \"dbg!\";"), 0);
    }

    #[test]
    fn a_long_function_is_found_and_the_list_only_shrinks() {
        let text = format!("fn long() {{\n{}}}\nfn short(x: [u8; 2]) {{}}\n", "    f();\n".repeat(100));
        let found = functions(&Source::new("src/a.rs", &text));
        assert_eq!((found[0].name.as_str(), found[0].lines), ("long", 102));
        let long = BTreeMap::from([(("src/a.rs".to_owned(), "long".to_owned()), 102)]);
        assert_eq!(ratchet(&long, &[]).len(), 1);
        assert_eq!(ratchet(&long, &[("src/a.rs", "long", 101)]).len(), 1);
        assert_eq!(ratchet(&long, &[("src/a.rs", "long", 103)]).len(), 1);
        assert_eq!(ratchet(&long, &[("src/a.rs", "long", 102)]).len(), 0);
        assert_eq!(ratchet(&BTreeMap::new(), &[("src/a.rs", "long", 102)]).len(), 1);
    }

    #[test]
    fn words_of_one_machine_are_found() {
        for line in [
            concat!("see /wo", "rk/notes.txt"),
            concat!("cd /ro", "ot/x"),
            concat!("# as asked in iss", "ue 12"),
            concat!("// fix", "es #3"),
            concat!("iss", "ues/4"),
            concat!("Iss", "ue #5"),
        ] {
            assert_eq!(private_words("a.md", line).len(), 1, "{line}");
        }
        for line in ["the issue ends here", "/var/tmp/x", "#1 of the list", "fixes # signs"] {
            assert_eq!(private_words("a.md", line).len(), 0, "{line}");
        }
    }

    #[test]
    fn literals_and_comments_are_blanked_and_nothing_else() {
        for (text, code) in [
            ("a /* x /* y */ z */ b", "a                   b"),
            ("f(\"a\\\"{\", '{', '\\'', b\"{\", b'}')", "f(      ,    ,     ,     , b   )"),
            ("r#\"{\"}\"# + br\"{\" 'a: loop", "          +        'a: loop"),
            ("fn f<'a>(x: &'a str) // {", "fn f<'a>(x: &'a str)     "),
            ("'é' {", "     {"),
        ] {
            assert_eq!(
                blank(text).split_whitespace().collect::<Vec<_>>(),
                code.split_whitespace().collect::<Vec<_>>(),
                "{text}"
            );
            assert_eq!(blank(text).len(), text.len());
        }
    }
}
