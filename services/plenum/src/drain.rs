//! `plenum drain`: asks a running process to drain and end, as SIGTERM does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cli::Drain;
use crate::config::{self, Config};

/// Path of the request, on the internal port.
pub const PATH: &str = "/drain";
/// Limit of each step of the request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends the request to the process that the configuration describes.
pub fn run(arguments: &Drain) -> anyhow::Result<ExitCode> {
    let config = config::load(&arguments.source.sources())?.config;
    let address = address(&config)?;
    let answer = ask(address, config.http_api.key.expose()).with_context(|| format!("http://{address}{PATH}"))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    match status {
        "202" => println!("http://{address} drains and ends"),
        "403" => bail!("http://{address} refused: http_api.key differs from its own"),
        _ => bail!("http://{address} answered {:?}", answer.lines().next().unwrap_or_default()),
    }
    Ok(ExitCode::SUCCESS)
}

fn address(config: &Config) -> anyhow::Result<SocketAddr> {
    let http = &config.http_server;
    let Some(port) = http.internal_port()? else {
        bail!("http_server.internal_port is not set: the port for clients takes no such request; send SIGTERM instead");
    };
    if http.internal_tls.enabled || (http.tls.enabled && !http.tls_external) {
        bail!("the internal port speaks TLS: send SIGTERM, or POST {PATH} with a client that knows its certificate");
    }
    let host = if http.internal_address.is_empty() { &http.address } else { &http.internal_address };
    let mut address = config::resolve(host, port).with_context(|| format!("address {host:?}"))?;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    Ok(address)
}

fn ask(address: SocketAddr, key: &str) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let key = if key.is_empty() { String::new() } else { format!("X-API-Key: {key}\r\n") };
    write!(socket, "POST {PATH} HTTP/1.1\r\nHost: {address}\r\n{key}Content-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.take(4096).read_to_string(&mut answer)?;
    Ok(answer)
}
