//! Notices that the client of an HTTP/1.1 connection has hung up while its request is worked on.
//!
//! hyper drops the future of a request whose HTTP/2 stream is reset. actix works on to the end, since a client may have shut
//! down its sending half alone and still read. For what costs next to nothing that is right. What costs much asks here, and
//! takes the end of what the client sends for its leaving, as Go's and nginx's servers do.
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Known to the requests of a connection. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct HangUp(Rc<State>);

#[derive(Debug, Default)]
struct State {
    has_happened: Cell<bool>,
    wake: Notify,
}

impl HangUp {
    /// Resolves when the client sends no more. actix reads ahead while a request is worked on, so it is noticed then.
    pub async fn happened(&self) {
        // Nothing runs between the look and the wait: all of a connection is on one thread.
        while !self.0.has_happened.get() {
            self.0.wake.notified().await;
        }
    }

    fn happens(&self) {
        self.0.has_happened.set(true);
        self.0.wake.notify_waiters();
    }
}

/// A connection that says when its client sends no more.
pub struct Watched {
    io: TcpStream,
    hang_up: HangUp,
}

impl Watched {
    pub fn new(io: TcpStream) -> Self {
        Self { io, hang_up: HangUp::default() }
    }

    pub fn hang_up(&self) -> HangUp {
        self.hang_up.clone()
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        let is_over = match &read {
            Poll::Ready(Ok(())) => room > 0 && buffer.filled().len() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if is_over {
            self.hang_up.happens();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_no_more_has_hung_up_and_one_that_is_silent_has_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut watched = Watched::new(listener.accept().await.unwrap().0);
        let hang_up = watched.hang_up();
        client.write_all(b"ask").await.unwrap();
        watched.read_exact(&mut [0; 3]).await.unwrap();
        assert!(!hang_up.0.has_happened.get());
        let mut rest = [0; 1];
        let reading = watched.read(&mut rest);
        drop(client);
        let (read, ()) = tokio::join!(reading, hang_up.happened());
        assert_eq!(read.unwrap(), 0);
        // Also for who asks later.
        hang_up.happened().await;
    }
}
