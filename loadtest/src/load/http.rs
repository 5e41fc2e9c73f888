//! HTTP/1.1 on a connection that is kept, with as little work as it takes: whole requests out of one buffer, answers with a length.
//!
//! In: an address, the bytes of a request. Out: status and body. What a browser would bear (chunks, redirects) is refused by name.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Headers of an answer that are looked at.
const MOST_HEADERS: usize = 64;
/// The largest answer.
const MOST_BYTES: usize = 64 << 20;
/// What one reading takes at most.
const CHUNK: usize = 64 << 10;

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Refused, reset or closed.
    #[error("{0}")]
    Connection(#[from] io::Error),
    /// Not HTTP/1.1, or a form of it that is not spoken here.
    #[error("the answer is not understood: {0}")]
    Answer(String),
    /// Nothing came in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// A kept connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Where the body of the last answer begins and ends.
    body: (usize, usize),
    is_kept: bool,
}

impl Connection {
    /// To `host:port`.
    pub async fn open(address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::new(), body: (0, 0), is_kept: true })
    }

    /// Sends one request and reads its answer; the status.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<u16, HttpError> {
        // Until the answer is whole nobody may take the connection again.
        self.is_kept = false;
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            self.read().await?;
            if let Some(head) = Head::parse(&self.buffer)? {
                break head;
            }
        };
        let end = head.length + head.body;
        if head.body > MOST_BYTES {
            return Err(HttpError::Answer(format!("{} bytes of body, at most {MOST_BYTES}", head.body)));
        }
        while self.buffer.len() < end {
            self.read().await?;
        }
        self.body = (head.length, end);
        self.is_kept = head.is_kept && self.buffer.len() == end;
        Ok(head.status)
    }

    /// Of the last answer.
    pub fn body(&self) -> &[u8] {
        &self.buffer[self.body.0..self.body.1]
    }

    /// Whether another request may go over it, as far as one can know.
    pub fn is_open(&self) -> bool {
        // Bytes that nobody asked for, or the end, make it unfit.
        let mut byte = [0];
        self.is_kept && self.stream.try_read(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn read(&mut self) -> Result<(), HttpError> {
        self.buffer.reserve(CHUNK);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer was whole").into()),
            _ => Ok(()),
        }
    }
}

/// What is needed of an answer's head.
struct Head {
    status: u16,
    /// Of the head itself.
    length: usize,
    /// Of the body.
    body: usize,
    is_kept: bool,
}

impl Head {
    /// `None` = it has not come whole.
    fn parse(bytes: &[u8]) -> Result<Option<Head>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let parsed = answer.parse(bytes).map_err(|error| HttpError::Answer(error.to_string()))?;
        let (httparse::Status::Complete(length), Some(status)) = (parsed, answer.code) else { return Ok(None) };
        let value = |name: &str| {
            let found = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
        };
        let body = match value("content-length") {
            Some(text) => text.parse().map_err(|_| HttpError::Answer(format!("content-length: {text}")))?,
            None if matches!(status, 204 | 304) => 0,
            None => return Err(HttpError::Answer("no content-length; chunks are not read here".to_string())),
        };
        let is_kept =
            answer.version == Some(1) && !value("connection").is_some_and(|text| text.eq_ignore_ascii_case("close"));
        Ok(Some(Head { status, length, body, is_kept }))
    }
}

/// One exchange on a connection of its own, for what is asked once; status and body.
pub fn ask(address: &str, request: &[u8], limit: Duration) -> Result<(u16, Vec<u8>), HttpError> {
    let asking = async {
        let mut connection = Connection::open(address).await?;
        let status = connection.exchange(request).await?;
        Ok((status, connection.body().to_vec()))
    };
    super::runtime()?
        .block_on(async { tokio::time::timeout(limit, asking).await.unwrap_or(Err(HttpError::Late(limit))) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_are_and_strange_ones_refused() {
        let head =
            Head::parse(b"HTTP/1.1 429 Too Many\r\nContent-Length: 12\r\nRetry-After: 1\r\n\r\nhe").expect("head");
        let head = head.expect("whole");
        assert_eq!((head.status, head.body, head.is_kept), (429, 12, true));
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\ncontent-le").expect("a part").is_none());
        let closing = Head::parse(b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n").expect("head");
        assert!(!closing.expect("whole").is_kept);
        let chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for (word, bytes) in [
            ("content-length", &chunks[..]),
            ("content-length", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"),
            ("", b"SSH-2.0\r\n\r\n"),
        ] {
            let said = Head::parse(bytes).map(|_| ()).expect_err("refused").to_string();
            assert!(said.contains("not understood") && said.contains(word), "{said}");
        }
    }
}
