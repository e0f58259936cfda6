//! What a process is there for.

use crate::config::Config;

/// Which services a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All of them.
    All,
    /// Client connections.
    Websocket,
    /// The server API.
    Api,
    /// Background work.
    Worker,
}

impl Role {
    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Role::All => "serve",
            Role::Websocket => "websocket",
            Role::Api => "api",
            Role::Worker => "worker",
        }
    }

    /// Switches off in the configuration what this role does not have. A role without services on the port for clients
    /// does not bind it, where there is an internal port.
    pub fn apply(self, config: &mut Config) {
        config.websocket.disabled |= matches!(self, Role::Api | Role::Worker);
        config.http_api.disabled |= matches!(self, Role::Websocket | Role::Worker);
        let on_public_port = !config.http_api.disabled && config.http_api.external;
        let http = &mut config.http_server;
        if self == Role::All || !config.websocket.disabled || on_public_port {
            return;
        }
        let Ok(Some(port)) = http.internal_port() else { return };
        http.port = port;
        http.internal_port.clear();
        if !http.internal_address.is_empty() {
            http.address = std::mem::take(&mut http.internal_address);
        }
        let internal = std::mem::take(&mut http.internal_tls);
        if internal.enabled {
            http.tls = internal;
        } else if http.tls_external {
            http.tls.enabled = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::default();
        config.http_server.internal_port = "9000".into();
        config.http_server.internal_address = "127.0.0.1".into();
        config
    }

    fn ports(role: Role, mut config: Config) -> (u16, Option<u16>, bool, bool) {
        role.apply(&mut config);
        let internal = config.http_server.internal_port().unwrap();
        (config.http_server.port, internal, !config.websocket.disabled, !config.http_api.disabled)
    }

    #[test]
    fn roles_have_their_services_and_only_the_ports_for_them() {
        assert_eq!(ports(Role::All, config()), (8000, Some(9000), true, true));
        assert_eq!(ports(Role::Websocket, config()), (8000, Some(9000), true, false));
        assert_eq!(ports(Role::Api, config()), (9000, None, false, true));
        assert_eq!(ports(Role::Worker, config()), (9000, None, false, false));
        assert_eq!(ports(Role::Api, Config::default()), (8000, None, false, true));
        let mut external = config();
        external.http_api.external = true;
        assert_eq!(ports(Role::Api, external), (8000, Some(9000), false, true));
    }

    #[test]
    fn the_internal_ports_address_and_encryption_go_along() {
        let mut config = config();
        config.http_server.tls.enabled = true;
        config.http_server.tls_external = true;
        Role::Worker.apply(&mut config);
        assert_eq!(config.http_server.address, "127.0.0.1");
        assert!(!config.http_server.tls.enabled);
    }
}
