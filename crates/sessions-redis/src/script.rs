//! Lua scripts: short, all keys in one slot, called by their digest and loaded where a server does not know them.

use std::sync::OnceLock;

/// A script with its version in its name. Scripts do all their reading and checking before the first write, so that one
/// which fails has written nothing.
pub struct Script {
    name: &'static str,
    text: &'static str,
    digest: OnceLock<String>,
}

impl Script {
    /// `name` ends with the version (`session_update/1`): a script whose text changes gets a new one.
    pub const fn new(name: &'static str, text: &'static str) -> Self {
        Script { name, text, digest: OnceLock::new() }
    }

    /// Name with version.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The Lua text.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// SHA-1 of the text, in hex.
    pub fn digest(&self) -> &str {
        self.digest.get_or_init(|| fred::util::sha1_hash(self.text))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{presence, quotas, sessions, tails};

    /// Every script that was released or may have been. A text that changes gets a new version and so a new row.
    const DIGESTS: [(&str, &str); 18] = [
        ("presence_join/1", "b2709a7d1166aeb145ee52e03e3ded92bb2035bb"),
        ("presence_leave/1", "50716380a1d252cb97692ad62aa974de7ebd119d"),
        ("presence_stats/2", "797c58d7edbac1e1176d6fc5cfb5eb9b35b02b73"),
        ("presence_sweep/2", "29b0854c9589428f2296d4b47068a143f7b3e70a"),
        ("presence_tell/1", "9f5f567c4b529852bf55051b269b90719e2f1cf3"),
        ("presence_touch/1", "b524fab062854417c6346aaade18e4cc6597e7bc"),
        ("quota_enter/1", "e5f58e94a3d57c8d13bbae24b105dad5bfaeb317"),
        ("quota_exit/1", "15ee22f7f891c13c5f17fb2c24e8f6d2ca09c1e4"),
        ("quota_hold/1", "713d5ae58b1cfa0d1a662cdbbe1c5156e8f60c96"),
        ("rate_take/1", "6b6a8f257997f86ccef8b09e9983921656423cb4"),
        ("session_create/1", "46c365eb55620b5d6085e1db44bec810d24f2d18"),
        ("session_delete/1", "8ca102e49ca2566c25a5ee3888d21bdcee2b8930"),
        ("session_list/1", "3f446ef64febdc7246dad47a0d22cb09853f3408"),
        ("session_listed/2", "ba161806f1d945fdd094c46d9c04c1e27606f6a3"),
        ("session_update/1", "cc13444c08c544cf657d2595f8286443ea958f51"),
        ("snapshot_discard/1", "58c69eaa5bc746c35039398db81e9114f2ef9dc7"),
        ("snapshot_keep/2", "e31558c2dc3c431711d3524691c191bb74f84b5b"),
        ("tail_keep/1", "08018f737aab425920a6cc3b5784443fdd242a0f"),
    ];

    #[test]
    fn a_text_changes_only_with_its_version() {
        let all = [&sessions::SCRIPTS[..], &presence::SCRIPTS, &quotas::SCRIPTS, &tails::SCRIPTS].concat();
        let mut found: Vec<_> = all.iter().map(|script| (script.name(), script.digest())).collect();
        found.sort_unstable();
        assert_eq!(found, DIGESTS);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        assert_eq!(made_in(&source), found.len(), "a script is not in its module's list");
    }

    /// Scripts that the sources make, those of tests left out.
    fn made_in(folder: &Path) -> usize {
        let made = |path: &Path| std::fs::read_to_string(path).unwrap().matches("Script = Script::new(").count();
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let own =
            paths.filter(|path| !["tests", "script", "lib"].contains(&path.file_stem().unwrap().to_str().unwrap()));
        own.map(|path| if path.is_dir() { made_in(&path) } else { made(&path) }).sum()
    }
}
