use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread::JoinHandle;

use super::*;

struct Collect(Vec<String>);

impl Listener for Collect {
    fn line(&mut self, _: usize, line: &[u8]) -> Result<()> {
        self.0.push(String::from_utf8(line.to_vec())?);
        Ok(())
    }
}

/// A server for one connection that answers the handshake, then sends `script`, cut in pieces of 7 bytes, and gives
/// back what the client sent after its greeting.
fn server(script: Vec<u8>, expect: usize) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        socket.set_nodelay(true).unwrap();
        let mut input = Vec::new();
        let mut byte = [0];
        while !input.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).unwrap();
            input.extend_from_slice(&byte);
        }
        socket
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            )
            .unwrap();
        let mut greeting = vec![0; Greeting::new("", Some("c")).unwrap().frame.len()];
        socket.read_exact(&mut greeting).unwrap();
        for piece in script.chunks(7) {
            socket.write_all(piece).unwrap();
        }
        let mut rest = vec![0; expect];
        socket.read_exact(&mut rest).unwrap();
        rest
    });
    (address, thread)
}

fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, text.len() as u8];
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn open(swarm: &mut Swarm, listener: &mut Collect) -> Result<()> {
    let greeting = Greeting::new("", Some("c"))?;
    swarm.open(1, 1, Duration::from_secs(5), |_| greeting.clone(), listener)
}

#[test]
fn a_connection_greets_answers_pings_and_hands_over_the_rest() {
    let script = [
        frame(r#"{"id":1,"connect":{"client":"x","version":"1"}}"#),
        frame("{\"id\":2,\"subscribe\":{}}\n{}\n{\"push\":{\"channel\":\"c\",\"pub\":{\"data\":1}}}"),
        frame(r#"{"push":{"channel":"c","pub":{"data":2}}}"#),
    ];
    let pong = crate::websocket::text_frame(b"{}");
    let (address, thread) = server(script.concat(), pong.len());
    let (mut swarm, mut listener) = (Swarm::new(address).unwrap(), Collect(Vec::new()));
    open(&mut swarm, &mut listener).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while listener.0.len() < 2 && Instant::now() < deadline {
        swarm.turn(Duration::from_millis(50), &mut listener).unwrap();
    }
    assert_eq!(listener.0.len(), 2);
    assert!(listener.0[0].ends_with(r#""data":1}}}"#) && listener.0[1].ends_with(r#""data":2}}}"#));
    assert_eq!((swarm.tally().live, swarm.tally().pings, swarm.tally().frames), (1, 1, 3));
    assert_eq!(thread.join().unwrap(), pong);
}

#[test]
fn a_refusal_is_an_error() {
    let script = frame(r#"{"id":1,"error":{"code":109,"message":"token expired"}}"#);
    let (address, thread) = server(script, 0);
    let (mut swarm, mut listener) = (Swarm::new(address).unwrap(), Collect(Vec::new()));
    let error = open(&mut swarm, &mut listener).unwrap_err();
    assert!(format!("{error:#}").contains("109"), "{error:#}");
    thread.join().unwrap();
}
