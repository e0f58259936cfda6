//! The few words of RESP that a test needs to steer a server past the client under test.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A text, in whatever form.
    Text(String),
    /// A number.
    Number(i64),
    /// Nothing.
    Nil,
    /// Several.
    List(Vec<Reply>),
}

impl Reply {
    /// The text; empty for anything else.
    pub fn text(&self) -> &str {
        if let Reply::Text(text) = self { text } else { "" }
    }

    /// The number; 0 for anything else.
    pub fn number(&self) -> i64 {
        if let Reply::Number(number) = self { *number } else { 0 }
    }

    /// The parts; empty for anything else.
    pub fn list(&self) -> &[Reply] {
        if let Reply::List(list) = self { list } else { &[] }
    }
}

/// Sends one command on a connection of its own, after `auth` if given; a server's error is an error here.
pub(super) async fn ask(
    port: u16,
    auth: Option<&(String, String)>,
    command: &[&str],
    limit: Duration,
) -> io::Result<Reply> {
    let exchange = async {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
        if let Some((user, password)) = auth {
            send(&mut stream, &["AUTH", user, password]).await?;
        }
        send(&mut stream, command).await
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer to {}", command.join(" ")));
    timeout(limit, exchange).await.unwrap_or_else(|_| Err(late()))
}

async fn send(stream: &mut BufReader<TcpStream>, command: &[&str]) -> io::Result<Reply> {
    let mut text = format!("*{}\r\n", command.len());
    for word in command {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(text.as_bytes()).await?;
    read(stream).await
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Reply> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = line.trim_end();
    let (kind, rest) = line.split_at(1.min(line.len()));
    let number = || rest.parse::<i64>().map_err(|_| io::Error::other(format!("not a number: {line}")));
    Ok(match kind {
        "+" => Reply::Text(rest.into()),
        "-" => return Err(io::Error::other(rest.to_owned())),
        ":" => Reply::Number(number()?),
        "$" | "*" if number()? < 0 => Reply::Nil,
        "$" => {
            let mut bytes = vec![0; number()? as usize + 2];
            stream.read_exact(&mut bytes).await?;
            bytes.truncate(bytes.len() - 2);
            Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" => {
            let mut list = Vec::new();
            for _ in 0..number()? {
                list.push(Box::pin(read(stream)).await?);
            }
            Reply::List(list)
        }
        _ => return Err(io::Error::other(format!("not RESP2: {line}"))),
    })
}
