//! SIGHUP: what can change while the daemon runs, changes; what cannot is said.

use super::logging::Level;
use crate::config::{Config, Environment};

/// Reads the configuration again and takes over what can be. Mistakes leave everything as it was.
pub(super) fn reload(
    current: &mut Config,
    load: impl FnOnce(&Environment) -> Result<Config, crate::config::ConfigError>,
    level: &Level,
    restrain: impl FnOnce(&Config),
) {
    let new = match load(&Environment::of_process()) {
        Ok(new) => new,
        Err(error) => {
            tracing::error!("the configuration stays as it was: {error}");
            return;
        }
    };
    if new.log.level != current.log.level {
        match level.set(&new.log.level) {
            Ok(()) => {
                tracing::info!(level = new.log.level, "took the log level over");
                current.log.level.clone_from(&new.log.level);
            }
            Err(error) => tracing::error!("{error}"),
        }
    }
    if restrained(current, &new) {
        restrain(&new);
        tracing::info!("took the limits on bytes a second and of single registries over");
    }
    match waiting(current, &new).as_slice() {
        [] => tracing::info!("reloaded the configuration"),
        sections => tracing::warn!(
            changed = sections.join(", "),
            "these changes of the configuration wait for a restart"
        ),
    }
}

/// Takes over what limits bytes a second and single registries; whether any of it differs.
fn restrained(current: &mut Config, new: &Config) -> bool {
    let before = current.clone();
    current.limits.disk_bytes_per_second = new.limits.disk_bytes_per_second;
    current.fetch.bytes_per_second = new.fetch.bytes_per_second;
    current.fetch.registries.clone_from(&new.fetch.registries);
    *current != before
}

/// What differs and needs a restart.
fn waiting(current: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("root", current.root != new.root),
        ("socket", current.socket != new.socket),
        ("control_socket", current.control_socket != new.control_socket),
        ("drain_timeout", current.drain_timeout != new.drain_timeout),
        ("[limits]", current.limits != new.limits),
        ("[fetch]", current.fetch != new.fetch),
        ("[registry]", current.registry != new.registry),
        ("[cri]", current.cri != new.cri),
        ("[pull]", current.pull != new.pull),
        ("[metrics]", current.metrics != new.metrics),
        ("log.format", current.log.format != new.log.format),
        ("[history]", current.history != new.history),
        ("[cleanup]", current.cleanup != new.cleanup),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_is_named() {
        let current = Config::defaults(2, &Environment::default());
        let mut new = current.clone();
        new.log.level = "debug".to_owned();
        assert!(waiting(&current, &new).is_empty());
        new.fetch.retries += 1;
        new.root = "/elsewhere".into();
        assert_eq!(waiting(&current, &new), ["root", "[fetch]"]);
    }

    #[test]
    fn limits_on_bytes_a_second_need_no_restart() {
        let mut current = Config::defaults(2, &Environment::default());
        let mut new = current.clone();
        assert!(!restrained(&mut current, &new));
        new.fetch.bytes_per_second = Some(1 << 20);
        assert!(restrained(&mut current, &new));
        new.fetch.registries.insert("host".to_owned(), crate::config::OfRegistry::default());
        assert!(restrained(&mut current, &new));
        new.limits.disk_bytes_per_second = Some(1 << 30);
        assert!(restrained(&mut current, &new));
        assert!(waiting(&current, &new).is_empty());
        new.limits.writers.nice = 5;
        assert!(!restrained(&mut current, &new));
        assert_eq!(waiting(&current, &new), ["[limits]"]);
    }
}
