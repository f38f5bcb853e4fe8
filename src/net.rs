//! The only socket types of the node. A simulated network takes their place here and nowhere else: with the feature
//! `turmoil` the sockets are those of the crate of that name, which work only inside one of its simulations.

#[cfg(not(feature = "turmoil"))]
pub use tokio::net::{TcpListener, TcpStream};

#[cfg(feature = "turmoil")]
pub use turmoil::net::{TcpListener, TcpStream};
