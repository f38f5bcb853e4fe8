//! What people type, and what they are shown: any line is a command or explained, and what is shown can be typed again.

use tetrachord::client::text;
use tetrachord::console::{self, Command};

use super::{Input, Seeds, Target, memory};

pub const CONSOLE: Target = Target {
    name: "console",
    start: || Box::new(console),
    input_bytes_max: 2_000,
    rounds: 40_000,
    seeds: console_seeds,
};

fn console(data: &[u8]) {
    let line = String::from_utf8_lossy(data);
    match memory::bounded(data.len(), 400, || console::parse(&line)) {
        Ok(command) => assert_eq!(
            written(&command).as_deref().map(console::parse),
            written(&command).map(|_| Ok(command))
        ),
        Err(why) => assert!(!why.is_empty()),
    }

    let typed = |shown: &str| {
        let words = text::words(shown).unwrap_or_else(|why| panic!("{shown} is shown for {data:?}: {why}"));
        assert_eq!(words.len(), 1, "{shown} is shown for {data:?}");
        words.into_iter().next().expect("one")
    };
    assert_eq!(typed(&text::value(data)).bytes, data);
    assert_eq!(typed(&text::hex(data)).bytes, data);
    if !data.is_empty() {
        assert_eq!(text::key(&typed(&text::shown_key(data))).expect("a key that was shown").bytes, data);
    }
    assert!(text::cut(&line, data.len() / 2).chars().count() <= data.len() / 2 + 1);

    let mut input = Input(data);
    let number = i64::from(input.number() as i32) << (input.byte() % 33) | i64::from(input.byte());
    for shown in [text::stamp(number), text::stamp_utc(number), text::second_utc(number)] {
        assert!(!shown.is_empty());
    }
    assert_eq!(text::signed(number).replace(',', "").parse(), Ok(number));
}

/// The command as somebody else might have typed it; `None` for those without arguments worth it.
fn written(command: &Command) -> Option<String> {
    let level = |level| text::level_name(level).to_lowercase();
    let stamp = |stamp: &Option<i64>| stamp.map_or(String::new(), |stamp| format!(" stamp {stamp}"));
    Some(match command {
        Command::Put { key, value, level: wanted, ttl_s, stamp: at } => {
            let ttl = ttl_s.map_or(String::new(), |ttl_s| format!(" ttl {ttl_s}"));
            format!("put {} {}{}{ttl} {}", key.shown, text::value(value), stamp(at), level(*wanted))
        }
        Command::Get { key, level: wanted } => format!("get {} {}", key.shown, level(*wanted)),
        Command::Delete { key, level: wanted, stamp: at } => {
            format!("del {} {}{}", key.shown, level(*wanted), stamp(at))
        }
        Command::Ring { key } => format!("ring {}", key.shown),
        _ => return None,
    })
}

fn console_seeds() -> Seeds {
    [
        ("put", "put 137 value137 quorum ttl 60 stamp 123"),
        ("put-quoted", r#"PUT 'it\'s \x00\n' "a \"b\"" all"#),
        ("put-hex", "put 0x8900 0xff any"),
        ("get", "get apple two"),
        ("delete", "delete '7' stamp -5"),
        ("ring", "ring gr\u{f6}\u{df}e"),
        ("trace", "trace on"),
        ("plain", "status"),
        ("comment", "# put 1 v"),
        ("wrong", "put 256 v"),
        ("open", "get 'a"),
        ("turned", "put \u{202e} \u{feff}"),
    ]
    .map(|(name, line)| (name.to_owned(), line.as_bytes().to_vec()))
    .into()
}
