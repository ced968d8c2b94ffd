//! The model: layers as lists of operations, and the final file system that the image specification's rules make of them.

use std::collections::BTreeMap;

/// One entry of a test's layer.
#[derive(Clone, Debug)]
pub(super) enum Put {
    File(String, u8, usize, u32),
    Directory(String, u32),
    Symlink(String, String),
    /// New name, old name.
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

/// What the model has at a path: type, mode, content or target, and which file it is.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Seen {
    Directory(u32),
    File(u32, Vec<u8>, usize),
    Symlink(String),
}

pub(super) type Model = BTreeMap<String, Seen>;

pub(super) fn below(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

pub(super) fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// Applies layers by the rules; what cannot be is left out of the layers themselves.
pub(super) fn model(layers: &mut [Vec<Put>]) -> Model {
    let (mut all, mut files) = (Model::new(), 0);
    for layer in layers {
        for put in layer.iter() {
            match put {
                Put::Whiteout(path) => all.retain(|other, _| other != path && !below(other, path)),
                Put::Opaque(path) if matches!(all.get(path), Some(Seen::Directory(_))) => {
                    all.retain(|other, _| !below(other, path));
                }
                _ => {}
            }
        }
        layer.retain(|put| {
            let path = match put {
                Put::File(path, ..)
                | Put::Directory(path, _)
                | Put::Symlink(path, _)
                | Put::Link(path, _) => path,
                Put::Whiteout(_) | Put::Opaque(_) => return true,
            };
            // Names through links and files are for the tests of `odd` images.
            if parents(path).any(|p| !matches!(all.get(p), None | Some(Seen::Directory(_)))) {
                return false;
            }
            let seen = match put {
                Put::Link(_, old) => match all.get(old) {
                    Some(seen @ Seen::File(..)) if old != path => seen.clone(),
                    _ => return false,
                },
                Put::File(_, byte, length, mode) => {
                    files += 1;
                    Seen::File(*mode, vec![*byte; *length], files)
                }
                Put::Directory(_, mode) => Seen::Directory(*mode),
                Put::Symlink(_, target) => Seen::Symlink(target.clone()),
                Put::Whiteout(_) | Put::Opaque(_) => unreachable!("returned above"),
            };
            for parent in parents(path) {
                all.entry(parent.to_owned()).or_insert(Seen::Directory(0o755));
            }
            if !matches!(seen, Seen::Directory(_)) {
                all.retain(|other, _| !below(other, path));
            }
            all.insert(path.clone(), seen);
            true
        });
    }
    all
}

pub(super) fn archive(layer: &[Put]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add =
        |name: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_mtime(7);
            header.set_size(content.len() as u64);
            match link {
                Some(target) => builder.append_link(&mut header, name, target).unwrap(),
                None => builder.append_data(&mut header, name, content).unwrap(),
            }
        };
    let marker = |path: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    use tar::EntryType as T;
    for put in layer {
        match put {
            Put::File(path, byte, length, mode) => {
                add(path, T::Regular, *mode, &vec![*byte; *length], None)
            }
            Put::Directory(path, mode) => add(&format!("{path}/"), T::Directory, *mode, b"", None),
            Put::Symlink(path, target) => add(path, T::Symlink, 0o777, b"", Some(target)),
            Put::Link(path, old) => add(path, T::Link, 0o644, b"", Some(old)),
            Put::Whiteout(path) => add(&marker(path), T::Regular, 0, b"", None),
            Put::Opaque(path) => add(&format!("{path}/.wh..wh..opq"), T::Regular, 0, b"", None),
        }
    }
    builder.into_inner().unwrap()
}

/// The reverse of `archive`.
pub(super) fn told_back(mut entry: tar::Entry<'_, &[u8]>) -> Put {
    let path = entry.path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned();
    let name = path.rsplit('/').next().unwrap();
    if name == ".wh..wh..opq" {
        return Put::Opaque(path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned());
    }
    if name.starts_with(".wh.") {
        return Put::Whiteout(path.replacen(".wh.", "", 1));
    }
    let mode = entry.header().mode().unwrap();
    let target = entry.link_name().unwrap().map(|t| t.to_str().unwrap().to_owned());
    match entry.header().entry_type() {
        tar::EntryType::Directory => Put::Directory(path, mode),
        tar::EntryType::Symlink => Put::Symlink(path, target.unwrap()),
        tar::EntryType::Link => Put::Link(path, target.unwrap()),
        _ => {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            Put::File(path, content.first().copied().unwrap_or(0), content.len(), mode)
        }
    }
}

/// Whether names are one file in `b` where they are in `a`; the other way round too if `both`.
pub(super) fn linked_alike(a: &Model, b: &Model, both: bool) -> bool {
    let number = |m: &Model, path: &String| match &m[path] {
        Seen::File(.., number) => *number,
        _ => 0,
    };
    let covers = |x: &Model, y: &Model| {
        let mut pairs = BTreeMap::new();
        x.keys().all(|path| {
            *pairs.entry(number(x, path)).or_insert_with(|| number(y, path)) == number(y, path)
        })
    };
    covers(a, b) && (!both || covers(b, a))
}

pub(super) fn without_numbers(model: &Model) -> Model {
    let strip = |seen: &Seen| match seen {
        Seen::File(mode, content, _) => Seen::File(*mode, content.clone(), 0),
        other => other.clone(),
    };
    model.iter().map(|(path, seen)| (path.clone(), strip(seen))).collect()
}
