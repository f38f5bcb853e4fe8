//! Four servers inside one process: put at one, crash another, read at a third.
//!
//!     cargo run --example four_nodes

use tetrachord::answer::NodeId;
use tetrachord::client::{Client, ClientOptions};
use tetrachord::config::Config;
use tetrachord::node::{Node, NodeOptions};
use tetrachord::nodes::{Address, Nodes};
use tetrachord::thrift::chord::{GetRequest, Level, PutRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let nodes = Nodes::new((0..4).map(|_| free_address()).collect::<Result<_, _>>()?);
    let mut running = Vec::new();
    for id in nodes.ids() {
        let data = scratch.path().join(id.to_string());
        let options = NodeOptions { config: Config::default(), nodes: nodes.clone(), id, data };
        running.push(Node::start(options).await?);
        println!("server {id} listens on {}", nodes.address(id).expect("an id of the list"));
    }

    let client = Client::new(nodes.clone(), ClientOptions::default());
    all_up(&client).await?;
    let key = b"do re mi fa".to_vec();
    let put = PutRequest::new(key.clone(), b"four notes in a row".to_vec(), Level::ALL, None, None, None);
    let written = client.pin(NodeId(0)).put(&put).await?;
    println!(
        "put at ALL: {} replicas have stamp {}",
        written.replicas.unwrap_or(0),
        written.stamp.unwrap_or(0)
    );

    running.pop().expect("four are running").stop().await;
    println!("server 3 is stopped");

    let got = client.pin(NodeId(1)).get(&GetRequest::new(key, Level::QUORUM, None)).await?;
    println!("get at QUORUM: {}", String::from_utf8_lossy(&got.value.unwrap_or_default()));
    for node in running {
        node.stop().await;
    }
    Ok(())
}

/// Waits until every server sees every other.
async fn all_up(client: &Client) -> anyhow::Result<()> {
    for id in client.nodes().ids() {
        let is_up = |member: &tetrachord::thrift::chord::Member| member.state.as_deref() == Some("up");
        while !client.pin(id).describe().await?.members.unwrap_or_default().iter().all(is_up) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

/// A port that is free now.
fn free_address() -> std::io::Result<Address> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    Ok(Address { host: "127.0.0.1".to_owned(), port })
}
