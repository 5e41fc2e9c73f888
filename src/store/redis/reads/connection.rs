//! One connection that many readers share: what they write goes out together, and answers come back in its order.
//!
//! In: commands as they go over the wire. Out: their answers. A task of its own writes and reads; it ends with the connection, or when
//! nobody holds that any more.

use super::ReadError;
use super::reply::{Framer, Replies};
use bytes::BytesMut;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, oneshot};

/// Room for what comes, at least and when a buffer is new.
const ROOM: (usize, usize) = (16 << 10, 256 << 10);
/// Most that waits to be written: a server that does not take it is not asked for more. Buffers above it are given back.
const MOST: usize = 1 << 20;

/// Whoever asks holds one; when all are dropped the connection ends.
pub(in super::super) struct ReadConnection(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Rung when there is something to write.
    rung: Notify,
    /// Rung when nobody holds the connection any more.
    left: Notify,
}

#[derive(Default)]
struct State {
    /// To be written.
    out: Vec<u8>,
    /// Who is answered, in turn.
    asked: VecDeque<Asked>,
    /// Why nothing goes any more.
    ended: Option<ReadError>,
}

/// Someone who waits for so many answers.
struct Asked {
    replies: usize,
    answer: oneshot::Sender<Replies>,
}

impl ReadConnection {
    /// Takes a stream that is logged in.
    pub fn start(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> ReadConnection {
        let shared = Arc::new(Shared::default());
        tokio::spawn(drive(stream, shared.clone()));
        ReadConnection(shared)
    }

    /// Whether it stands, as far as is known.
    pub fn is_open(&self) -> bool {
        self.0.state.lock().ended.is_none()
    }

    /// Sends commands that get so many answers; all of them, one behind the other. Who waits no longer may go: what comes for him is
    /// thrown away.
    pub async fn ask(&self, replies: usize, commands: &[u8]) -> Result<Replies, ReadError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.0.state.lock();
            if let Some(ended) = &state.ended {
                return Err(ended.clone());
            }
            if state.out.len() > MOST {
                return Err(ReadError::Closed("the server does not take what it is sent".into()));
            }
            state.out.extend_from_slice(commands);
            state.asked.push_back(Asked { replies, answer });
        }
        self.0.rung.notify_one();
        answered.await.map_err(|_| self.0.state.lock().ended.clone().unwrap_or_else(left))
    }
}

impl Drop for ReadConnection {
    fn drop(&mut self) {
        self.0.end(left());
        self.0.left.notify_one();
    }
}

fn left() -> ReadError {
    ReadError::Closed("nobody needs it any more".into())
}

impl Shared {
    /// Nobody is answered from here on.
    fn end(&self, why: ReadError) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(why);
        state.asked.clear();
    }
}

async fn drive(stream: impl AsyncRead + AsyncWrite, shared: Arc<Shared>) {
    let (reader, writer) = tokio::io::split(stream);
    let why = tokio::select! {
        biased;
        () = shared.left.notified() => left(),
        why = write(writer, &shared) => why,
        why = read(reader, &shared) => why,
    };
    shared.end(why);
}

/// Writes what there is, until it cannot or need not any more.
async fn write(mut writer: WriteHalf<impl AsyncWrite>, shared: &Shared) -> ReadError {
    let mut out = Vec::new();
    loop {
        shared.rung.notified().await;
        {
            std::mem::swap(&mut out, &mut shared.state.lock().out);
        }
        let written = async {
            writer.write_all(&out).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            return ReadError::Closed(error.to_string());
        }
        out.clear();
        if out.capacity() > MOST {
            out = Vec::new();
        }
    }
}

/// Reads answers and hands them out, until there are no more.
async fn read(mut reader: ReadHalf<impl AsyncRead>, shared: &Shared) -> ReadError {
    let mut inbox = BytesMut::with_capacity(ROOM.1);
    let (mut framer, mut ends) = (Framer::default(), Vec::new());
    loop {
        if inbox.is_empty() && inbox.capacity() > MOST {
            inbox = BytesMut::with_capacity(ROOM.1);
        }
        if inbox.capacity() - inbox.len() < ROOM.0 {
            inbox.reserve(ROOM.1);
        }
        match reader.read_buf(&mut inbox).await {
            Ok(0) => return ReadError::Closed("by the server".into()),
            Ok(_) => {}
            Err(error) => return ReadError::Closed(error.to_string()),
        }
        if let Err(error) = hand_out(&mut inbox, (&mut framer, &mut ends), shared) {
            return error;
        }
    }
}

/// Gives whole answers to who asked for them. `ends` are those of the one who is next.
fn hand_out(
    inbox: &mut BytesMut,
    (framer, ends): (&mut Framer, &mut Vec<usize>),
    shared: &Shared,
) -> Result<(), ReadError> {
    while !inbox.is_empty() {
        let next = shared.state.lock().asked.front().map(|asked| asked.replies);
        let Some(wanted) = next else { return Err(ReadError::Malformed("an answer to nobody")) };
        ends.reserve(wanted.saturating_sub(ends.len()));
        while ends.len() < wanted {
            let Some(end) = framer.end(inbox)? else { return Ok(()) };
            ends.push(end);
        }
        let bytes = inbox.split_to(ends.last().copied().unwrap_or_default()).freeze();
        framer.restart();
        let replies = Replies::new(bytes, std::mem::take(ends));
        let asked = shared.state.lock().asked.pop_front();
        // Who asked may have gone.
        let _ = asked.map(|asked| asked.answer.send(replies));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::FutureExt;
    use tokio::io::DuplexStream;

    fn pair() -> (ReadConnection, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        (ReadConnection::start(ours), theirs)
    }

    #[tokio::test]
    async fn answers_come_to_those_who_asked_and_who_left_gets_none() {
        let (connection, mut server) = pair();
        let ask = |text: &'static str, replies| connection.ask(replies, text.as_bytes());
        let (mut first, mut second, mut third) = (Box::pin(ask("a", 2)), Box::pin(ask("b", 1)), Box::pin(ask("c", 1)));
        for asked in [&mut first, &mut second, &mut third] {
            assert!(asked.now_or_never().is_none());
        }
        let mut got = [0; 3];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"abc");
        drop(second);
        for part in ["$1\r\nx\r", "\n*1\r\n$-1\r\n+gone", "\r\n:3\r\n"] {
            server.write_all(part.as_bytes()).await.unwrap();
        }
        let (first, third) = (first.await.unwrap(), third.await.unwrap());
        assert_eq!(
            first.iter().map(|reply| reply.as_bytes()).collect::<Vec<_>>(),
            [&b"$1\r\nx\r\n"[..], b"*1\r\n$-1\r\n"]
        );
        assert_eq!(third.iter().map(|reply| reply.as_bytes()).collect::<Vec<_>>(), [b":3\r\n"]);
    }

    #[tokio::test]
    async fn a_connection_that_ends_ends_what_waits_for_it() {
        let (connection, server) = pair();
        let mut asked = Box::pin(connection.ask(1, b"x"));
        assert!((&mut asked).now_or_never().is_none());
        drop(server);
        assert!(matches!(asked.await, Err(ReadError::Closed(_))));
        assert!(!connection.is_open());
        assert!(connection.ask(1, b"x").await.is_err());
    }

    #[tokio::test]
    async fn what_is_no_answer_ends_it() {
        for bytes in ["?", "+OK\r\n+more\r\n"] {
            let (connection, mut server) = pair();
            let mut asked = Box::pin(connection.ask(1, b"x"));
            assert!((&mut asked).now_or_never().is_none());
            server.write_all(bytes.as_bytes()).await.unwrap();
            let _ = asked.await;
            // The end of the stream: our side hung up.
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();
            assert!(!connection.is_open(), "{bytes}");
        }
    }

    #[tokio::test]
    async fn a_server_that_takes_nothing_is_asked_for_no_more_and_is_hung_up_on() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let connection = ReadConnection::start(ours);
        let commands = vec![b'x'; MOST / 4];
        for _ in 0..8 {
            // Who asks goes away, what was asked stays.
            let _ = connection.ask(1, &commands).now_or_never();
            tokio::task::yield_now().await;
        }
        assert!(matches!(connection.ask(1, b"x").await, Err(ReadError::Closed(why)) if why.contains("does not take")));
        drop(connection);
        // The end comes although the task was in the middle of writing.
        let mut taken = Vec::new();
        theirs.read_to_end(&mut taken).await.unwrap();
        assert!(taken.len() < MOST / 4, "{}", taken.len());
    }

    #[tokio::test]
    async fn nobody_left_hangs_up() {
        let (connection, mut server) = pair();
        drop(connection);
        assert_eq!(server.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }
}
