//! The only socket types of the node. A simulated network takes their place here and nowhere else.

pub use tokio::net::{TcpListener, TcpStream};
