//! containerd: the proxy plugin, and for CRI and `ctr` the snapshotter and its labels.
//!
//! A file of our own holds it, `conf.d/hoist.toml`, which `config.toml` imports. containerd merges imported files plugin
//! by plugin, the later table replacing the earlier one whole; so the keys of a plugin that `config.toml` has a table for
//! already are set there, beside what is there.

use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::{Change, InstallError, SNAPSHOTTER, backup_of, refused};

/// Who is to use hoist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum For {
    /// dockerd alone: the proxy plugin is enough.
    Docker,
    /// The kubelet, crictl, nerdctl, `ctr`.
    All,
}

/// What planning has to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Where `config.toml` is.
    pub path: PathBuf,
    /// What is in it.
    pub text: Option<String>,
    /// What was in it before hoist, if hoist has changed it.
    pub backup: Option<String>,
    /// What is in the file of our own.
    pub drop_in: Option<String>,
    /// Files that it imports, with their texts, without our own.
    pub imported: Vec<(PathBuf, String)>,
    /// containerd's version, major and minor.
    pub version: (u64, u64),
    /// hoistd's socket.
    pub socket: PathBuf,
    /// hoistd's root.
    pub root: PathBuf,
    /// The architecture, as OCI calls it.
    pub architecture: String,
}

impl Facts {
    /// The file of our own.
    pub fn drop_in_path(&self) -> PathBuf {
        drop_in_of(&self.path)
    }
}

/// The file of our own beside the configuration `path`.
pub fn drop_in_of(path: &Path) -> PathBuf {
    path.with_file_name("conf.d").join("hoist.toml")
}

const HEADER: &str = "# Written by hoist: `hoist uninstall` takes it back.\n";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// The changes that plug hoist in.
///
/// # Errors
/// Where it would break the host, or a file is no TOML.
pub fn plan(facts: &Facts, who: For) -> Result<Vec<Change>, InstallError> {
    if facts.version < (1, 5) {
        let (major, minor) = facts.version;
        return Err(refused(format!(
            "containerd {major}.{minor} is too old: 1.6 is the first that hoist works with"
        )));
    }
    let text = facts.text.as_deref().unwrap_or("");
    let mut main = parsed(&facts.path, text)?;
    if facts.text.is_none() {
        main["version"] = value(if facts.version.0 >= 2 { 3 } else { 2 });
    }
    // containerd's own word: without the key it is the first version of the format.
    let format = main.get("version").and_then(Item::as_integer).unwrap_or(1);
    if who == For::All && format < 2 {
        return Err(refused(format!(
            "{} is of containerd's first format (it has no `version`), which has no place for what CRI needs. Convert \
             it first: containerd config migrate",
            facts.path.display()
        )));
    }
    let without_hoist = !has_hoist(&main, facts);
    let mut own = parsed(&facts.drop_in_path(), facts.drop_in.as_deref().unwrap_or(HEADER))?;
    if main.contains_key("version") {
        own["version"] = value(format);
    }
    proxy_plugin(&mut own, facts);
    if who == For::All {
        for (plugin, set) in plugins(facts, format) {
            elsewhere(facts, plugin)?;
            if has_plugin(&main, plugin) {
                // Where config.toml was written anew since (as nodeadm does at each boot), our table of then would replace its.
                remove(&mut own, &["plugins", plugin]);
                set(&mut main, facts);
            } else {
                set(&mut own, facts);
            }
        }
    }
    import(&mut main, facts);
    Ok(vec![
        Change::new(&facts.path, facts.text.as_deref(), Some(main.to_string()))
            .of_a_file_without_hoist(without_hoist),
        Change::new(&facts.drop_in_path(), facts.drop_in.as_deref(), Some(own.to_string())),
    ])
}

/// The changes that take it back.
///
/// # Errors
/// Where a file is no TOML.
pub fn undo(facts: &Facts) -> Result<Vec<Change>, InstallError> {
    let ours = Change::new(&facts.drop_in_path(), facts.drop_in.as_deref(), None);
    let Some(text) = facts.text.as_deref() else {
        // The configuration went with containerd; what was kept beside it is of no use any more.
        let kept = Change::new(&backup_of(&facts.path), facts.backup.as_deref(), None);
        return Ok(vec![ours, kept]);
    };
    // Nobody has touched it since: what was there comes back as it was.
    let original = Facts { text: facts.backup.clone(), drop_in: None, ..facts.clone() };
    for who in [For::All, For::Docker] {
        if let Ok(changes) = plan(&original, who)
            && changes[0].after.as_deref() == Some(text)
        {
            return Ok(vec![Change::new(&facts.path, Some(text), facts.backup.clone()), ours]);
        }
    }
    let mut main = parsed(&facts.path, text)?;
    let old = parsed(&facts.path, facts.backup.as_deref().unwrap_or(""))?;
    let format = main.get("version").and_then(Item::as_integer).unwrap_or(1);
    take_out(&mut main, &old, facts, format);
    Ok(vec![Change::new(&facts.path, Some(text), Some(main.to_string())), ours])
}

/// The oldest containerd that our file of this text can have been written for: the exports came with 2.0.
pub fn written_for(drop_in: &str) -> (u64, u64) {
    let own: DocumentMut = drop_in.parse().unwrap_or_default();
    if lookup(&own, &["proxy_plugins", SNAPSHOTTER, "exports"]).is_some() { (2, 0) } else { (1, 5) }
}

/// Whether our file is there for more than Docker.
pub fn serves_others(drop_in: &str, main: &str) -> bool {
    let document = |text: &str| text.parse::<DocumentMut>().unwrap_or_default();
    let (own, main) = (document(drop_in), document(main));
    own.contains_key("plugins") || CRI.into_iter().any(|cri| is_chosen(&main, cri))
}

/// CRI's plugin and the table of its keys, by format 3 and by format 2.
const CRI: [(&str, &[&str]); 2] =
    [("io.containerd.cri.v1.images", &[]), ("io.containerd.grpc.v1.cri", &["containerd"])];

fn parsed(path: &Path, text: &str) -> Result<DocumentMut, InstallError> {
    text.parse().map_err(|error: toml_edit::TomlError| InstallError::Unreadable {
        path: path.to_owned(),
        problem: error.to_string().trim().to_owned(),
    })
}

fn path_of<'a>(plugin: &'a str, tables: &[&'a str], key: &'a str) -> Vec<&'a str> {
    [&["plugins", plugin], tables, &[key]].concat()
}

fn lookup<'a>(document: &'a DocumentMut, path: &[&str]) -> Option<&'a Item> {
    path.iter().try_fold(document.as_item(), |item, key| item.get(key))
}

fn has_plugin(document: &DocumentMut, plugin: &str) -> bool {
    lookup(document, &["plugins", plugin]).is_some()
}

/// Sets a key, making the tables on its way; what stands around it stays.
fn set(document: &mut DocumentMut, path: &[&str], to: impl Into<Value>) {
    let (key, tables) = path.split_last().expect("a path has a key");
    let mut item = document.as_item_mut();
    for table in tables {
        let inside = item.as_table_like_mut().expect("containerd wants a table here");
        if !inside.contains_key(table) {
            let mut new = Table::new();
            new.set_implicit(true);
            inside.insert(table, Item::Table(new));
        }
        item = inside.get_mut(table).expect("it was just made");
    }
    let table = item.as_table_like_mut().expect("containerd wants a table here");
    let mut new: Value = to.into();
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            // The comment at the end of its line.
            *new.decor_mut() = old.decor().clone();
            *old = new;
        }
        _ => {
            table.insert(key, Item::Value(new));
        }
    }
}

fn proxy_plugin(document: &mut DocumentMut, facts: &Facts) {
    let plugin = ["proxy_plugins", SNAPSHOTTER];
    set(document, &[&plugin[..], &["type"]].concat(), "snapshot");
    let socket = facts.socket.display().to_string();
    set(document, &[&plugin[..], &["address"]].concat(), socket);
    if facts.version.0 >= 2 {
        let root = facts.root.display().to_string();
        set(document, &[&plugin[..], &["exports", "root"]].concat(), root);
        let labels = "enable_remote_snapshot_annotations";
        set(document, &[&plugin[..], &["exports", labels]].concat(), "true");
    }
}

type Setter = fn(&mut DocumentMut, &Facts);

fn plugins(facts: &Facts, format: i64) -> Vec<(&'static str, Setter)> {
    let cri: (_, Setter) = if format >= 3 {
        (CRI[0].0, |document, _| cri_keys(document, CRI[0]))
    } else {
        (CRI[1].0, |document, _| cri_keys(document, CRI[1]))
    };
    // The transfer service of 1.7 knows no snapshotter's labels, and needs no entry.
    if facts.version.0 >= 2 { vec![cri, (TRANSFER, unpack_config)] } else { vec![cri] }
}

const CRI_KEYS: [&str; 2] = ["snapshotter", "disable_snapshot_annotations"];

fn cri_keys(document: &mut DocumentMut, (plugin, tables): (&str, &[&str])) {
    set(document, &path_of(plugin, tables, CRI_KEYS[0]), SNAPSHOTTER);
    set(document, &path_of(plugin, tables, CRI_KEYS[1]), false);
}

/// Entries replace the built-in one, so overlayfs gets one too where there is none at all.
fn unpack_config(document: &mut DocumentMut, facts: &Facts) {
    set(document, &["plugins", TRANSFER, "hoist"], 0);
    let table = document["plugins"][TRANSFER].as_table_like_mut().expect("it was just made");
    table.remove("hoist");
    let entry = |snapshotter: &str| {
        let mut entry = Table::new();
        entry["platform"] = value(format!("linux/{}", facts.architecture));
        entry["snapshotter"] = value(snapshotter);
        entry["differ"] = value("walking");
        entry
    };
    match table.get_mut("unpack_config") {
        Some(Item::ArrayOfTables(entries)) => {
            if !entries.iter().any(|entry| is_ours(entry)) {
                entries.push(entry(SNAPSHOTTER));
            }
        }
        Some(Item::Value(Value::Array(entries))) => {
            let ours = |entry: &Value| entry.as_inline_table().is_some_and(|entry| is_ours(entry));
            if !entries.iter().any(ours) {
                entries.push(entry(SNAPSHOTTER).into_inline_table());
            }
        }
        _ => {
            let mut entries = ArrayOfTables::new();
            entries.push(entry(SNAPSHOTTER));
            entries.push(entry("overlayfs"));
            table.insert("unpack_config", Item::ArrayOfTables(entries));
        }
    }
}

/// Whether an entry of `unpack_config` is for hoist.
fn is_ours(entry: &dyn toml_edit::TableLike) -> bool {
    entry.get("snapshotter").and_then(Item::as_str) == Some(SNAPSHOTTER)
}

/// A plugin's table in a file that comes after ours would replace what we set.
fn elsewhere(facts: &Facts, plugin: &str) -> Result<(), InstallError> {
    for (path, text) in &facts.imported {
        if has_plugin(&parsed(path, text)?, plugin) {
            return Err(refused(format!(
                "{} sets the plugin {plugin}, and {} imports it: containerd takes such a table whole, from one file. \
                 Move that table into {}, or put the lines of hoist's config/containerd-*.toml into it by hand",
                path.display(),
                facts.path.display(),
                facts.path.display()
            )));
        }
    }
    Ok(())
}

fn import(document: &mut DocumentMut, facts: &Facts) {
    let own = facts.drop_in_path();
    let pattern = own.with_file_name("*.toml").display().to_string();
    let own = own.display().to_string();
    let covers = |entry: &Value| entry.as_str().is_some_and(|text| text == pattern || text == own);
    let imports = document.entry("imports").or_insert_with(|| value(Array::new()));
    if let Some(imports) = imports.as_array_mut()
        && !imports.iter().any(covers)
    {
        imports.push(own);
    }
}

/// Whether anything in it is ours: the import, or a key that only an earlier installation set so.
fn has_hoist(main: &DocumentMut, facts: &Facts) -> bool {
    let own = facts.drop_in_path().display().to_string();
    let imports = main.get("imports").and_then(Item::as_array);
    imports.is_some_and(|imports| imports.iter().any(|entry| entry.as_str() == Some(&own)))
        || CRI.into_iter().any(|cri| is_chosen(main, cri))
        || lookup(main, &["plugins", TRANSFER, "unpack_config"]).is_some_and(|entries| {
            let tables = entries.as_array_of_tables().into_iter().flatten();
            let array = entries.as_array().into_iter().flatten();
            let inline = array.filter_map(|entry| entry.as_inline_table());
            tables.map(|table| table as &dyn toml_edit::TableLike).any(is_ours)
                || inline.map(|table| table as &dyn toml_edit::TableLike).any(is_ours)
        })
}

/// Whether CRI is told to use hoist.
fn is_chosen(main: &DocumentMut, (plugin, tables): (&str, &[&str])) -> bool {
    let name = lookup(main, &path_of(plugin, tables, "snapshotter"));
    name.and_then(Item::as_str) == Some(SNAPSHOTTER)
}

/// Where the file was edited after us: our keys, and nothing else.
fn take_out(main: &mut DocumentMut, old: &DocumentMut, facts: &Facts, format: i64) {
    let own = facts.drop_in_path().display().to_string();
    if let Some(imports) = main.get_mut("imports").and_then(Item::as_array_mut) {
        imports.retain(|entry| entry.as_str() != Some(&own));
        if imports.is_empty() && !old.contains_key("imports") {
            main.remove("imports");
        }
    }
    let (plugin, tables) = if format >= 3 { CRI[0] } else { CRI[1] };
    // Where somebody has chosen another snapshotter since, both keys are theirs.
    let keys: &[_] = if is_chosen(main, (plugin, tables)) { &CRI_KEYS } else { &[] };
    for &key in keys {
        let path = path_of(plugin, tables, key);
        let before = lookup(old, &path).and_then(Item::as_value).cloned();
        match (lookup(main, &path).is_some(), before) {
            (true, Some(before)) => set(main, &path, before),
            (true, None) => remove(main, &path),
            (false, _) => {}
        }
    }
    // Asking for what is not there would make it.
    if lookup(main, &["plugins", TRANSFER, "unpack_config"]).is_some() {
        let entries = &mut main["plugins"][TRANSFER]["unpack_config"];
        if let Some(tables) = entries.as_array_of_tables_mut() {
            tables.retain(|entry| !is_ours(entry));
        } else if let Some(array) = entries.as_array_mut() {
            array.retain(|entry| !entry.as_inline_table().is_some_and(|entry| is_ours(entry)));
        }
    }
}

fn remove(document: &mut DocumentMut, path: &[&str]) {
    let (key, tables) = path.split_last().expect("a path has a key");
    let mut item = Some(document.as_item_mut());
    for table in tables {
        item = item.and_then(|item| item.as_table_like_mut()?.get_mut(table));
    }
    if let Some(table) = item.and_then(Item::as_table_like_mut) {
        table.remove(key);
    }
}
