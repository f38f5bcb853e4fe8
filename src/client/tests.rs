//! A client against fake servers on real sockets of this machine.

use std::task::Poll;

use futures_util::future::join_all;

use super::fake::{self, Fake, Manner};
use super::*;
use crate::thrift::chord::{Level, Operation, Overloaded, Unavailable};
use crate::thrift::method::{ClientGet, GetServerId};

fn options() -> ClientOptions {
    ClientOptions { back_off_max: Duration::from_millis(40), ..ClientOptions::default() }
}

fn put(key: u8, stamp: Option<i64>) -> PutRequest {
    PutRequest::new(vec![key], b"v".to_vec(), Level::QUORUM, None, stamp, None)
}

fn get(key: u8) -> GetRequest {
    GetRequest::new(vec![key], Level::QUORUM, None)
}

async fn one() -> (Fake, Client) {
    let (mut fakes, nodes) = fake::cluster(1).await;
    (fakes.remove(0), Client::new(nodes, options()))
}

#[tokio::test]
async fn a_request_goes_to_the_owner_of_its_key() {
    let (fakes, nodes) = fake::cluster(4).await;
    let client = Client::new(nodes, options());
    for key in [0, 64, 137, 200] {
        client.put(&put(key, None)).await.unwrap();
        assert_eq!(client.get(&get(key)).await.unwrap().value, Some(b"v".to_vec()));
    }
    for fake in fakes {
        assert_eq!(fake.calls(), ["put", "get"]);
        assert_eq!(fake.accepted(), 1);
    }
}

#[tokio::test]
async fn the_ring_is_learned_from_the_first_server_that_answers() {
    let (fakes, nodes) = fake::cluster(2).await;
    for fake in &fakes {
        fake.describing(|description| {
            description.replication_factor = Some(1);
            let members = description.members.as_mut().unwrap();
            members[0].token = Some(vec![10]);
            members[1].token = Some(vec![20]);
        });
    }
    let client = Client::new(nodes, options());
    client.get(&get(0)).await.unwrap(); // guessed
    client.get(&get(15)).await.unwrap(); // as described
    client.get(&get(99)).await.unwrap(); // past the last token: wraps
    assert_eq!(fakes[0].calls(), ["get", "get"]);
    assert_eq!(fakes[1].calls(), ["get"]);
    assert_eq!(client.ring().copies(), 1);
}

#[tokio::test]
async fn a_dead_server_is_passed_over_and_found_again_when_it_returns() {
    let (mut fakes, nodes) = fake::cluster(4).await;
    let client = Client::new(nodes, options());
    fakes[0].stop().await;
    client.put(&put(0, None)).await.unwrap();
    assert_eq!(fakes[1].calls(), ["put"]);
    fakes[0].restart().await;
    comes_back(&client, &fakes[0]).await;
}

#[tokio::test]
async fn a_frozen_server_costs_one_wait_and_is_found_again_when_it_goes_on() {
    let (fakes, nodes) = fake::cluster(2).await;
    let client = Client::new(nodes, options().with_call_timeout(Duration::from_millis(200)));
    client.put(&put(0, None)).await.unwrap();
    fakes[0].behave(Manner::Frozen);
    assert!(matches!(client.put(&put(0, None)).await, Err(ClientError::Unknown { .. })));
    let began = tokio::time::Instant::now();
    for _ in 0..10 {
        client.put(&put(0, None)).await.unwrap(); // elsewhere
        tokio::time::sleep(Duration::from_millis(50)).await; // longer than it is left alone
    }
    assert_eq!(fakes[1].calls().len(), 10);
    assert!(began.elapsed() < Duration::from_secs(2), "no call waited for it");
    fakes[0].behave(Manner::Serve);
    comes_back(&client, &fakes[0]).await;
}

/// Puts until one arrives at this server, whose turn is the first for key 0.
async fn comes_back(client: &Client, fake: &fake::Fake) {
    let before = fake.calls().len();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while fake.calls().len() == before {
        client.put(&put(0, None)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(tokio::time::Instant::now() < deadline, "it was never found again");
    }
}

#[tokio::test]
async fn nothing_is_sent_when_no_server_can_be_reached_and_every_one_is_named() {
    let (mut fakes, nodes) = fake::cluster(2).await;
    for fake in &mut fakes {
        fake.stop().await;
    }
    let client = Client::new(nodes, options());
    for _ in 0..2 {
        match client.put(&put(0, None)).await {
            Err(ClientError::Unreachable { tried }) => {
                assert_eq!(tried.len(), 2);
                assert!(tried.iter().all(|attempt| attempt.why == "connection refused"), "{tried:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_pinned_client_waits_for_its_server_to_be_tried_again() {
    let (mut fake, client) = one().await;
    fake.stop().await;
    assert!(matches!(client.pin(NodeId(0)).get(&get(0)).await, Err(ClientError::Unreachable { .. })));
    fake.restart().await;
    client.pin(NodeId(0)).get(&get(0)).await.unwrap(); // although the last attempt failed just now
}

#[tokio::test]
async fn a_lost_answer_makes_a_write_unknown_and_a_read_go_elsewhere() {
    let (fakes, nodes) = fake::cluster(2).await;
    let client = Client::new(nodes, options());
    fakes[0].behave(Manner::HangUp);
    match client.put(&put(0, None)).await {
        Err(ClientError::Unknown { tried }) => {
            assert_eq!(tried[0].node, NodeId(0));
            assert_eq!(tried[0].why, "the server closed the connection");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fakes[1].calls(), Vec::<&str>::new());

    client.get(&get(0)).await.unwrap();
    assert_eq!(fakes[1].calls(), ["get"]);
    client.put(&put(0, Some(5))).await.unwrap(); // stamped: the same cell twice is the same cell
    assert_eq!(fakes[1].calls(), ["get", "put"]);

    fakes[1].behave(Manner::HangUp);
    assert!(matches!(client.get(&get(0)).await, Err(ClientError::NoAnswer { .. })));
    assert!(matches!(client.put(&put(0, Some(5))).await, Err(ClientError::Unknown { .. })));
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_the_call_timeout() {
    let (fakes, nodes) = fake::cluster(2).await;
    let client = Client::new(nodes, options().with_call_timeout(Duration::from_millis(60)));
    fakes[0].behave(Manner::Silent);
    let before = tokio::time::Instant::now();
    match client.put(&put(0, None)).await {
        Err(ClientError::Unknown { tried }) => assert_eq!(tried[0].why, "no answer within 60 ms"),
        other => panic!("{other:?}"),
    }
    assert!(before.elapsed() >= Duration::from_millis(60));
    assert!(before.elapsed() < Duration::from_millis(1000));
    client.get(&get(0)).await.unwrap(); // elsewhere
    assert_eq!(fakes[1].calls(), ["get"]);
    fakes[0].behave(Manner::Serve);
    client.pin(NodeId(0)).get(&get(0)).await.unwrap();
    assert_eq!(fakes[0].accepted(), 2);
}

#[tokio::test]
async fn answers_that_fit_no_call_cost_the_connection() {
    for manner in [Manner::OutOfSequence, Manner::Garbage] {
        let (fake, client) = one().await;
        fake.behave(manner.clone());
        assert!(matches!(client.put(&put(0, None)).await, Err(ClientError::Unknown { .. })), "{manner:?}");
        assert!(matches!(client.get(&get(0)).await, Err(ClientError::NoAnswer { .. })), "{manner:?}");
        fake.behave(Manner::Serve);
        client.get(&get(0)).await.unwrap();
        assert!(fake.accepted() >= 2, "{manner:?}");
    }
}

#[tokio::test]
async fn a_write_cut_off_in_the_middle_of_its_frame_was_not_carried_out() {
    let listener = crate::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = Address { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
    let client = Client::new(Nodes::new(vec![address]), options());
    let never_read = async {
        loop {
            let (_stream, _) = listener.accept().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let large = PutRequest { value: Some(vec![0; 64 * 1024 * 1024]), ..put(0, None) };
    let put = async { client.put(&large).await };
    tokio::select! {
        biased;
        () = never_read => {}
        result = put => assert!(matches!(result, Err(ClientError::Unreachable { .. })), "{result:?}"),
    }
}

#[tokio::test]
async fn a_refusal_is_passed_on_and_not_tried_elsewhere() {
    let (fakes, nodes) = fake::cluster(3).await;
    let client = Client::new(nodes, options());
    for refusal in [
        Refusal::Unavailable(Unavailable::new(
            Level::QUORUM,
            2,
            1,
            "Not enough replicas alive: 1 of 2".to_owned(),
        )),
        Refusal::Overloaded(Overloaded { message: None }),
    ] {
        fakes[0].behave(Manner::Refuse(refusal.clone()));
        match client.put(&put(0, Some(1))).await {
            Err(ClientError::Refused(refused)) => assert_eq!(refused, refusal),
            other => panic!("{other:?}"),
        }
    }
    assert!(fakes[1].calls().is_empty());
    fakes[0].behave(Manner::Declines);
    assert!(matches!(client.put(&put(0, None)).await, Err(ClientError::Declined(_))));
    fakes[0].behave(Manner::Serve);
    client.put(&put(0, None)).await.unwrap();
    assert_eq!(fakes[0].accepted(), 1); // all of it on one connection
}

#[tokio::test]
async fn many_calls_share_one_connection_and_each_gets_its_own_answer() {
    let (fake, client) = one().await;
    for key in 0..=255u8 {
        fake.hold(&[key], fake::value(i64::from(key), "v"));
    }
    let narrow = ClientOptions { calls_per_server_max: 16, ..options() };
    for client in [client, Client::new(Nodes::new(vec![fake.address().clone()]), narrow)] {
        let calls = (0..=255u8).map(|key| {
            let client = client.clone();
            async move { client.get(&get(key)).await.unwrap().stamp }
        });
        let stamps = join_all(calls).await;
        assert_eq!(stamps, (0..=255).map(Some).collect::<Vec<_>>());
    }
    assert_eq!(fake.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_several_threads_share_a_client() {
    let (fakes, nodes) = fake::cluster(3).await;
    for key in 0..=255u8 {
        for fake in &fakes {
            fake.hold(&[key], fake::value(i64::from(key), "v"));
        }
    }
    let client = Client::new(nodes, options());
    let task = |offset: u8| {
        let client = client.clone();
        tokio::spawn(async move {
            for step in 0..=255u8 {
                let key = step.wrapping_mul(7).wrapping_add(offset);
                assert_eq!(client.get(&get(key)).await.unwrap().stamp, Some(i64::from(key)));
            }
        })
    };
    for task in (0..16).map(task).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(fakes.iter().map(Fake::accepted).collect::<Vec<_>>(), [1, 1, 1]);
}

#[tokio::test]
async fn a_call_whose_caller_left_keeps_its_place_in_the_line() {
    let (fake, client) = one().await;
    fake.hold(&[1], fake::value(1, "v"));
    fake.hold(&[2], fake::value(2, "v"));
    {
        let first = get(1);
        let mut left = std::pin::pin!(client.get(&first));
        let begun = std::future::poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx).is_pending())).await;
        assert!(begun);
    }
    assert_eq!(client.get(&get(2)).await.unwrap().stamp, Some(2));
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_replaced_before_anything_is_sent() {
    let (mut fake, client) = one().await;
    client.put(&put(0, None)).await.unwrap();
    fake.stop().await;
    fake.restart().await;
    client.put(&put(0, None)).await.unwrap();
    assert_eq!(fake.accepted(), 2);
}

#[test]
fn a_connection_closed_while_the_runtime_slept_is_replaced_before_anything_is_sent() {
    let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut fakes, nodes) = servers.block_on(fake::cluster(1));
    let console = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Client::new(nodes, options());
    for _ in 0..20 {
        console.block_on(client.put(&put(0, None))).unwrap();
        servers.block_on(async {
            fakes[0].stop().await;
            fakes[0].restart().await;
        });
        std::thread::sleep(Duration::from_millis(5)); // nobody looks at the socket
    }
}

#[tokio::test]
async fn batches_of_reads_and_stamped_writes_may_be_repeated() {
    let (fakes, nodes) = fake::cluster(2).await;
    let client = Client::new(nodes, options());
    let batch = |operations: Vec<Operation>| BatchRequest::new(operations);
    let read = || Operation::new(None, get(0), None);
    let stamped = || Operation::new(put(0, Some(1)), None, None);
    let plain = || Operation::new(put(0, None), None, None);
    assert_eq!(client.batch(&batch(vec![plain(), read()])).await.unwrap().outcomes.unwrap().len(), 2);
    fakes[0].behave(Manner::HangUp);
    client.batch(&batch(vec![read(), stamped()])).await.unwrap();
    assert_eq!(fakes[1].calls(), ["batch"]);
    assert!(matches!(client.batch(&batch(vec![read(), plain()])).await, Err(ClientError::Unknown { .. })));
    fakes[1].behave(Manner::HangUp);
    assert!(matches!(client.batch(&batch(vec![read()])).await, Err(ClientError::NoAnswer { .. })));
    assert!(matches!(client.batch(&batch(vec![stamped()])).await, Err(ClientError::Unknown { .. })));
}

#[tokio::test]
async fn any_method_can_be_called_on_any_server() {
    let (_fakes, nodes) = fake::cluster(2).await;
    let client = Client::new(nodes, options());
    assert_eq!(client.call_on::<GetServerId>(NodeId(1), &()).await.unwrap(), 1);
    let wrong = crate::thrift::chord::ClientRequest::new(None, None);
    match client.call_on::<ClientGet>(NodeId(0), &wrong).await {
        Err(ClientError::Classic(message)) => assert_eq!(message, "Not enough replicas alive"),
        other => panic!("{other:?}"),
    }
    let error = client.call_on::<GetServerId>(NodeId(7), &()).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no server 7: the cluster has servers 0 to 1");
}

#[tokio::test]
async fn a_clients_last_clone_takes_its_connections_along() {
    let (fake, client) = one().await;
    client.clone().get(&get(0)).await.unwrap();
    client.get(&get(0)).await.unwrap();
    drop(client);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(fake.open_connections(), 0);
}

#[test]
fn back_off_doubles_up_to_its_bound() {
    let options = ClientOptions::default();
    let waits: Vec<u128> =
        [0, 1, 2, 5, 6, 100].map(|failures| options.back_off(failures).as_millis()).to_vec();
    assert_eq!(waits, [20, 40, 80, 640, 1000, 1000]);
}
