//! Where a client is, when proxies stand between.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::HeaderMap;
use http::header::HeaderName;

/// The addresses that a request came through, each proxy adding the one it saw to the right.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Proxies that are believed; `http_server.trusted_proxies`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

/// Not the address of a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an IP address or a network such as 10.0.0.0/8 or fd00::/8")]
pub struct NetworkError {
    /// Where it stands in the list.
    pub index: usize,
    /// What stands there.
    pub text: String,
}

/// IPv4 addresses as IPv6 maps them, so that there is one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    bits: u128,
    prefix: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(u32::from_str(prefix).ok()?)),
            None => (text, None),
        };
        let address = IpAddr::from_str(address).ok()?;
        let (own, most) = if address.is_ipv4() { (96, 32) } else { (0, 128) };
        let prefix = prefix.unwrap_or(most);
        (prefix <= most).then_some(Self { bits: bits(address), prefix: own + prefix })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differing = self.bits ^ bits(address);
        differing.leading_zeros() >= self.prefix
    }
}

fn bits(address: IpAddr) -> u128 {
    u128::from(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    })
}

impl TrustedProxies {
    /// Reads a list of addresses and networks.
    pub fn new(list: &[String]) -> Result<Self, NetworkError> {
        let read = |(index, text): (usize, &String)| {
            Network::parse(text.trim()).ok_or_else(|| NetworkError { index, text: text.clone() })
        };
        list.iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The nearest address that is none of a trusted proxy; what stands left of it may be made up. The last one that can be
    /// read where something cannot.
    pub(crate) fn client(&self, headers: &HeaderMap, remote: SocketAddr) -> IpAddr {
        let mut client = remote.ip().to_canonical();
        if self.0.is_empty() {
            return client;
        }
        let mut values: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
        while self.contain(client) {
            let Some(value) = values.pop() else { break };
            let Ok(text) = value.to_str() else { break };
            for part in text.rsplit(',') {
                let Some(address) = address(part.trim()) else { return client };
                client = address;
                if !self.contain(client) {
                    return client;
                }
            }
        }
        client
    }
}

/// An address, which some proxies write with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let found = IpAddr::from_str(bare).ok().or_else(|| SocketAddr::from_str(text).ok().map(|it| it.ip()));
    found.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], headers: &[&str], remote: &str) -> String {
        let trusted: Vec<String> = trusted.iter().map(|text| (*text).to_owned()).collect();
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(FORWARDED_FOR, value.parse().unwrap());
        }
        let remote = SocketAddr::new(remote.parse().unwrap(), 1);
        TrustedProxies::new(&trusted).unwrap().client(&map, remote).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        for (trusted, headers, remote, found) in [
            (&[][..], &["1.2.3.4"][..], "10.0.0.1", "10.0.0.1"),
            (&["10.0.0.0/8"], &["1.2.3.4"], "192.0.2.1", "192.0.2.1"),
            (&["10.0.0.0/8"], &["1.2.3.4"], "10.0.0.1", "1.2.3.4"),
            (&["10.0.0.0/8"], &["1.2.3.4"], "::ffff:10.0.0.1", "1.2.3.4"),
            (&["10.0.0.0/8"], &["6.6.6.6, 1.2.3.4, 10.9.9.9"], "10.0.0.1", "1.2.3.4"),
            (&["10.0.0.0/8"], &["6.6.6.6", "1.2.3.4,10.9.9.9"], "10.0.0.1", "1.2.3.4"),
            (&["10.0.0.0/8"], &["10.0.0.7, 10.9.9.9"], "10.0.0.1", "10.0.0.7"),
            (&["10.0.0.0/8"], &["1.2.3.4, nonsense, 10.9.9.9"], "10.0.0.1", "10.9.9.9"),
            (&["10.0.0.0/8"], &[], "10.0.0.1", "10.0.0.1"),
            (&["10.0.0.1", "fd00::/8"], &["2001:db8::1, [fd00::2]:80"], "10.0.0.1", "2001:db8::1"),
            (&["::/0"], &["1.2.3.4"], "10.0.0.1", "1.2.3.4"),
            (&["0.0.0.0/0"], &["2001:db8::1"], "10.0.0.1", "2001:db8::1"),
            (&["10.0.0.1/32"], &["1.2.3.4:5678"], "10.0.0.1", "1.2.3.4"),
        ] {
            assert_eq!(client(trusted, headers, remote), found, "{trusted:?} {headers:?} {remote}");
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        for text in ["", "proxy", "10.0.0.0/33", "10.0.0.0/", "fd00::/129", "10.0.0/8"] {
            let error = TrustedProxies::new(&["::1".to_owned(), text.to_owned()]).unwrap_err();
            assert_eq!((error.index, error.text.as_str()), (1, text));
        }
    }
}
