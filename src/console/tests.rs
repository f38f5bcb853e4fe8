//! Whole conversations with fake servers, as a person would read them.

use super::*;
use crate::client::fake::{self, Fake, Manner};
use crate::thrift::chord::{Level, Timeout, Unavailable};
use crate::thrift::method::Refusal;

/// Carries out `lines` and returns what was said, answers and remarks in one stream as on a terminal, with ports as
/// `port0`, `port1`, …
async fn said(client: &Client, preferred: Option<u32>, json: bool, lines: &str) -> (String, Came) {
    let stream = Stream::default();
    let (mut answers, mut remarks) = (stream.clone(), stream.clone());
    let screen = Screen { answers: &mut answers, remarks: &mut remarks, json, greet: true };
    let session = Session::connect(client.clone(), preferred.map(NodeId), screen).await.unwrap();
    let came = match session {
        None => Came::Refused,
        Some(mut session) => carry_out_in(&mut session, all_of(&mut lines.as_bytes())).await.unwrap(),
    };
    let mut said = String::from_utf8(stream.0.borrow().clone()).unwrap();
    for (id, address) in client.nodes().addresses().iter().enumerate() {
        said = said.replace(&address.port.to_string(), &format!("port{id}"));
    }
    (said, came)
}

fn all_of(from: &mut dyn BufRead) -> Lines<'_> {
    Lines { from, all_there: true }
}

#[derive(Clone, Default)]
struct Stream(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

impl io::Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn options() -> ClientOptions {
    let back_off_max = Duration::from_millis(40);
    ClientOptions { back_off_max, ..ClientOptions::default().with_call_timeout(Duration::from_millis(500)) }
}

async fn cluster(count: usize) -> (Vec<Fake>, Client) {
    let (fakes, nodes) = fake::cluster(count).await;
    (fakes, Client::new(nodes, options()))
}

#[tokio::test]
async fn a_first_conversation() {
    let (_fakes, client) = cluster(3).await;
    let lines = "\
        put 137 value137 quorum\n\
        get 137 quorum\n\
        get 'no such' one\n\
        put 'a b' 'c d' all\n\
        get 'a b'\n\
        put 0xff00 0x00\n\
        get 0xff00\n\
        put apple pie ttl 60\n\
        get apple\n\
        put 1 old stamp 5\n\
        put 1 older stamp 4\n\
        get 1\n\
        del 137\n\
        get 137\n\
        exit\n\
        put 1 after one\n";
    let (said, came) = said(&client, Some(2), false, lines).await;
    assert_eq!(came, Came::Done);
    assert_eq!(
        said,
        "\
connected to server 2 at 127.0.0.1:port2
SUCCESS
137 = value137   2026-11-21 02:15:28.999280 UTC
'no such' not found
SUCCESS
'a b' = 'c d'   2026-11-21 02:15:28.999280 UTC
SUCCESS
0xff00 = 0x00   2026-11-21 02:15:28.999280 UTC
SUCCESS
apple = pie   2026-11-21 02:15:28.999280 UTC   expires 2001-09-09 01:47:40 UTC
SUCCESS
SUCCESS, but a newer version stays: stamp 5
1 = old   stamp 5
SUCCESS
137 not found
"
    );
}

#[tokio::test]
async fn refusals_and_wrong_lines_are_said_and_the_rest_is_carried_out() {
    let (fakes, client) = cluster(1).await;
    fakes[0].behave(Manner::Refuse(Refusal::Unavailable(Unavailable::new(Level::QUORUM, 2, 1, None))));
    let (text, came) = said(&client, None, false, "put 1 v\nget 1\nget 2\n").await;
    assert_eq!(came, Came::Refused);
    let refused = "FAILED  Not enough replicas alive: QUORUM needs 2, 1 up; nothing was written\n";
    assert_eq!(text, format!("connected to server 0 at 127.0.0.1:port0\n{}", refused.repeat(3)));

    fakes[0].behave(Manner::Refuse(Refusal::Timeout(Timeout::new(Level::ALL, 3, 1, None))));
    let (text, came) = said(&client, None, false, "put 1 v all\nget 1 all\n\n# done\nset 1 v\n").await;
    assert_eq!(came, Came::WrongUse);
    assert_eq!(
        text,
        "\
connected to server 0 at 127.0.0.1:port0
UNKNOWN  ALL needs 3, 1 answered in time; a write may or may not have happened
FAILED  ALL needs 3, 1 answered in time; a write may or may not have happened
set is no command; there are put, get, del, status, ring, trace, stats, help, exit
"
    );
}

#[tokio::test]
async fn another_server_takes_over_where_one_went_away() {
    let (mut fakes, client) = cluster(3).await;
    fakes[0].stop().await;
    let (text, _) = said(&client, None, false, "put 1 v\n").await;
    assert_eq!(text, "connected to server 1 at 127.0.0.1:port1\nSUCCESS\n");
    let (text, _) = said(&client, Some(0), false, "").await;
    assert_eq!(
        text,
        "server 0 at 127.0.0.1:port0: connection refused; connected to server 1 at 127.0.0.1:port1\n"
    );

    let stream = Stream::default();
    let (mut answers, mut remarks) = (stream.clone(), stream.clone());
    let screen = Screen { answers: &mut answers, remarks: &mut remarks, json: false, greet: true };
    let mut session = Session::connect(client.clone(), Some(NodeId(2)), screen).await.unwrap().unwrap();
    fakes[2].behave(Manner::HangUp);
    session.line("put 1 w").await.unwrap();
    fakes[2].stop().await;
    session.line("get 1").await.unwrap();
    assert_eq!(session.current(), NodeId(1));
    let said = String::from_utf8(stream.0.borrow().clone()).unwrap();
    let port = |id: u32| client.nodes().address(NodeId(id)).unwrap().port;
    let (one, two) = (port(1), port(2));
    assert_eq!(
        said,
        format!(
            "\
connected to server 2 at 127.0.0.1:{two}
UNKNOWN  the write may or may not have happened: server 2 at 127.0.0.1:{two}: the server closed the connection
server 2 at 127.0.0.1:{two} went away (connection refused); connected to server 1 at 127.0.0.1:{one}
1 = v   2026-11-21 02:15:28.999280 UTC
"
        )
    );
}

#[tokio::test]
async fn where_no_server_answers_every_one_is_named() {
    let (mut fakes, client) = cluster(2).await;
    for fake in &mut fakes {
        fake.stop().await;
    }
    let (text, came) = said(&client, None, false, "put 1 v\n").await;
    assert_eq!(came, Came::Refused);
    assert_eq!(
        text,
        "FAILED  no server can be reached, nothing was sent: server 0 at 127.0.0.1:port0: connection refused; \
         server 1 at 127.0.0.1:port1: connection refused\n"
    );
}

#[tokio::test]
async fn status_and_ring_show_who_holds_what() {
    let (fakes, client) = cluster(4).await;
    fakes[1].describing(|description| {
        for (id, member) in description.members.as_mut().unwrap().iter_mut().enumerate() {
            member.address = Some(format!("127.0.0.1:900{id}"));
        }
        let member = &mut description.members.as_mut().unwrap()[2];
        member.state = Some("down".to_owned());
        member.detail = Some("connection refused".to_owned());
        member.hints = Some(2);
        member.hint_bytes = Some(1200);
    });
    let (text, _) = said(&client, Some(1), false, "status\nring 137\n").await;
    assert_eq!(
        text,
        "\
connected to server 1 at 127.0.0.1:port1
cluster tetrachord: 4 servers, 3 copies of each key, durability power-loss; as server 1 (version 0.1.0) sees it
server 0  up       127.0.0.1:9000  token 0x3fffffff…  owns keys 0 to 63
server 1  up       127.0.0.1:9001  token 0x7fffffff…  owns keys 64 to 127
server 2  DOWN     127.0.0.1:9002  token 0xbfffffff…  owns keys 128 to 191   2 hints wait (1,200 bytes)  connection refused
server 3  up       127.0.0.1:9003  token 0xffffffff…  owns keys 192 to 255
137 is on servers 2, 3, 0; a quorum is 2
server 2  DOWN     127.0.0.1:9002  owner
server 3  up       127.0.0.1:9003
server 0  up       127.0.0.1:9000
"
    );
}

#[tokio::test]
async fn stats_trace_and_help() {
    let (fakes, client) = cluster(1).await;
    let (text, _) = said(&client, None, false, "stats\n").await;
    assert_eq!(text, "connected to server 0 at 127.0.0.1:port0\nnothing counted yet\n");
    fakes[0].count_stat("writes_ok", 12_345);
    fakes[0].count_stat("reads_ok", 0);
    fakes[0].count_stat("write_p50_us", 250);
    let (text, came) =
        said(&client, None, false, "stats\ntrace on\nput 1 v\nget 1\ntrace off\nget 1\nhelp\n").await;
    assert_eq!(came, Came::Done);
    let expected = "\
connected to server 0 at 127.0.0.1:port0
write_p50_us  250
writes_ok     12,345
trace is on
SUCCESS
  asked server 0
  server 0 applied
1 = v   2026-11-21 02:15:28.999280 UTC
  asked server 0
  server 0 applied
trace is off
1 = v   2026-11-21 02:15:28.999280 UTC
"
    .to_owned();
    assert_eq!(text, expected + &command::help());
}

#[tokio::test]
async fn json_is_one_object_per_answer() {
    let (fakes, client) = cluster(1).await;
    let lines = "put 137 v one\nget 137\nget text\nput text 0xff\nget text\ntrace on\nget 137\nset\n";
    let (text, came) = said(&client, None, true, lines).await;
    assert_eq!(came, Came::WrongUse);
    let expected = r#"connected to server 0 at 127.0.0.1:port0
{"command":"put","key":137,"replicas":2,"result":"SUCCESS","stamp":1795227328999280}
{"command":"get","found":true,"key":137,"stamp":1795227328999280,"time":"2026-11-21 02:15:28.999280 UTC","value":"v"}
{"command":"get","found":false,"key":"text"}
{"command":"put","key":"text","replicas":2,"result":"SUCCESS","stamp":1795227328999280}
{"command":"get","found":true,"key":"text","stamp":1795227328999280,"time":"2026-11-21 02:15:28.999280 UTC","valueHex":"0xff"}
{"command":"trace","on":true}
{"command":"get","found":true,"key":137,"stamp":1795227328999280,"time":"2026-11-21 02:15:28.999280 UTC","trace":["asked server 0","server 0 applied"],"value":"v"}
{"error":"usage","message":"set is no command; there are put, get, del, status, ring, trace, stats, help, exit","outcome":"nothing changed"}
"#;
    assert_eq!(text, expected);
    fakes[0].behave(Manner::HangUp);
    let (text, came) = said(&client, None, true, "put 137 v\n").await;
    assert_eq!(came, Came::Refused);
    let answer: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert_eq!(answer["error"], "unknown");
    assert_eq!(answer["outcome"], "unknown");
    assert_eq!(answer["key"], 137);
}

#[tokio::test]
async fn a_line_that_is_no_text_is_answered_like_any_wrong_line() {
    let (_fakes, client) = cluster(1).await;
    for (json, said) in [
        (false, "a line is not UTF-8; write such bytes as 0x and hexadecimal digits\n"),
        (
            true,
            "{\"error\":\"usage\",\"message\":\"a line is not UTF-8; write such bytes as 0x and hexadecimal digits\",\
             \"outcome\":\"nothing changed\"}\n",
        ),
    ] {
        let stream = Stream::default();
        let (mut answers, mut remarks) = (stream.clone(), stream.clone());
        let screen = Screen { answers: &mut answers, remarks: &mut remarks, json, greet: false };
        let mut session = Session::connect(client.clone(), None, screen).await.unwrap().unwrap();
        let came = carry_out_in(&mut session, all_of(&mut &b"put 1 \xff\n"[..])).await.unwrap();
        assert_eq!(came, Came::WrongUse);
        assert_eq!(String::from_utf8(stream.0.borrow().clone()).unwrap(), said);
    }
}

/// Takes so many answers, then nobody reads any more.
struct Closing(usize);

impl io::Write for Closing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0 -= 1;
        Ok(())
    }
}

#[tokio::test]
async fn what_is_not_carried_out_because_nobody_reads_is_not_done() {
    let (fakes, client) = cluster(1).await;
    for (lines, json, came, calls) in [
        ("put 1 a\nput 2 b\n", false, Came::Done, 2),
        ("put 1 a\nput 2 b\n\n# that is all\nexit\nput 3 c\n", false, Came::Done, 2),
        ("put 1 a\nput 2 b\nput 3 c\n", false, Came::Refused, 2),
        ("put 1 a\nput 2 b\nset\n", false, Came::Refused, 2),
        ("put 300 a\nput 1 a\nput 2 b\nput 3 c\n", false, Came::WrongUse, 2),
        ("put 300 a\nput 1 a\nput 2 b\n", false, Came::WrongUse, 2),
        // The answer that nobody heard says that the line was wrong.
        ("put 1 a\nput 300 b\n", true, Came::WrongUse, 1),
    ] {
        let before = fakes[0].calls().len();
        let (mut answers, mut remarks) = (Closing(1), io::sink());
        let screen = Screen { answers: &mut answers, remarks: &mut remarks, json, greet: false };
        let mut session = Session::connect(client.clone(), None, screen).await.unwrap().unwrap();
        assert_eq!(carry_out_in(&mut session, all_of(&mut lines.as_bytes())).await.unwrap(), came, "{lines}");
        assert_eq!(fakes[0].calls().len() - before, calls, "{lines}");
    }
    // Who writes the lines may write more, and is not waited for.
    let (mut answers, mut remarks) = (Closing(1), io::sink());
    let screen = Screen { answers: &mut answers, remarks: &mut remarks, json: false, greet: false };
    let mut session = Session::connect(client.clone(), None, screen).await.unwrap().unwrap();
    let lines = Lines { from: &mut &b"put 1 a\nput 2 b\n"[..], all_there: false };
    assert_eq!(carry_out_in(&mut session, lines).await.unwrap(), Came::Refused);
}

#[test]
fn what_is_put_into_a_command_begins_no_other() {
    let parsed = |command| Options::try_parse_from(["client", "-e", command]);
    assert!(parsed("put k v\ndel k").unwrap_err().to_string().contains("one command is one line"));
    assert!(parsed("# put k v\ndel k").is_err());
    assert_eq!(parsed("get 137\n").unwrap().execute, ["get 137\n"]);
    assert_eq!(parsed(r"put k 'two\nlines'").unwrap().execute, [r"put k 'two\nlines'"]);
}

#[tokio::test]
async fn a_server_is_named_by_number_port_or_address() {
    let (_fakes, nodes) = fake::cluster(2).await;
    let port = nodes.addresses()[1].port;
    assert_eq!(server_named("1", &nodes), Ok(NodeId(1)));
    assert_eq!(server_named(&port.to_string(), &nodes), Ok(NodeId(1)));
    let error = "2 is no server: write a number from 0 to 1, a port, or HOST:PORT";
    assert_eq!(server_named("2", &nodes), Err(error.to_owned()));
    assert!(server_named("two", &nodes).is_err());

    // The rest of the cluster is learned from the server at that address.
    let options = Options::parse_from(["client", &format!("localhost:{port}")]);
    let (client, preferred) = choose(&options).await.unwrap();
    assert_eq!(preferred, Some(NodeId(1)));
    assert_eq!(client.nodes().addresses()[0], nodes.addresses()[0]);
    assert_eq!(client.nodes().addresses()[1].host, "localhost");

    let options = Options::parse_from(["client", "--nodes", "/no/such/nodes.txt"]);
    assert!(choose(&options).await.err().unwrap().contains("cannot read /no/such/nodes.txt"));
}
