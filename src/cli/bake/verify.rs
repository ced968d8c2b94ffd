//! `hoist bake --verify`: whether what was baked is there and intact, and mending it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::error::CliError;
use super::super::prefetch::{pins, pull, refused};
use super::super::remote::{Client, told};
use super::super::table::short;
use super::super::{print, print_json};
use super::record::{self, Baked, BakedImage, BakedLayer};
use super::{Bake, root};
use crate::control::{CheckPinRequest, ListTreesRequest, Pin, PrefetchRequest, ReleaseRequest};
use crate::listing::{self, Depth};

/// How long the files of a damaged layer may take to go, once nobody has it any more.
const SWEPT: Duration = Duration::from_secs(30);

/// Differences of one layer that are told; the rest is counted.
const TOLD: usize = 20;

/// Something that is not as it was baked.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// The images that have it.
    images: Vec<String>,
    /// The layer, where it is one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    /// The path in the layer, where it is one file's.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    what: String,
    #[serde(skip)]
    mend: Mend,
}

/// What helps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Mend {
    /// What is kept here is enough.
    Restore,
    /// The image has to be pulled again.
    Pull,
}

/// `hoist bake --verify`.
pub(super) async fn verify(args: &Bake, mut client: Client) -> Result<(), CliError> {
    let root = root(&mut client).await?;
    let baked = record::read(&root)?;
    let depth = if args.full { Depth::Content } else { Depth::Metadata };
    let mut findings = look(&mut client, &root, &baked, depth).await?;
    let mut mended = Vec::new();
    if args.repair && !findings.is_empty() {
        mended = findings;
        repair(&mut client, args, &root, &baked, &mended).await?;
        let baked = record::read(&root)?;
        findings = look(&mut client, &root, &baked, depth).await?;
    }
    tell(args, &baked, &findings, &mended)?;
    match findings.len() {
        0 => Ok(()),
        count => Err(CliError::Spoiled(count)),
    }
}

fn tell(
    args: &Bake,
    baked: &Baked,
    findings: &[Finding],
    mended: &[Finding],
) -> Result<(), CliError> {
    let (images, layers) = (baked.images.len(), baked.layers().count());
    if args.json {
        return print_json(&serde_json::json!({
            "images": images, "layers": layers, "full": args.full,
            "wrong": findings, "mended": mended,
        }));
    }
    for (word, list) in [("mended: ", mended), ("", findings)] {
        for finding in list {
            print(&format!("{word}{}\n", line(finding)))?;
        }
    }
    if findings.is_empty() && !args.quiet {
        let how = if args.full { "every byte" } else { "everything but the content of files" };
        print(&format!("{images} images, {layers} layers: {how} is as it was baked\n"))?;
    }
    Ok(())
}

fn line(finding: &Finding) -> String {
    let mut text = finding.images.join(", ");
    if let Some(layer) = &finding.layer {
        text = format!("{text}: layer {}", short(layer));
    }
    if let Some(path) = &finding.path {
        text = format!("{text}: {path}");
    }
    format!("{text}: {}", finding.what)
}

/// Everything that is not as it was baked.
async fn look(
    client: &mut Client,
    root: &Path,
    baked: &Baked,
    depth: Depth,
) -> Result<Vec<Finding>, CliError> {
    let pins = pins(client).await?;
    let mut findings = Vec::new();
    for image in &baked.images {
        let mut wrong = |what: String, mend| {
            let images = vec![image.image.clone()];
            findings.push(Finding { images, layer: None, path: None, what, mend });
        };
        match pin_of(image, &pins) {
            None => wrong("is not pinned any more".to_owned(), Mend::Pull),
            Some(pin) if pin.digest != image.digest => {
                wrong(format!("is another image now, {}", short(&pin.digest)), Mend::Pull);
            }
            Some(_) => match client.check_pin(check(image, false)).await {
                Ok(answer) if answer.get_ref().present => {}
                Ok(_) => {
                    let what = format!("is not in containerd's namespace {}", image.namespace);
                    wrong(what, Mend::Restore);
                }
                Err(status) => return Err(refused(&status)),
            },
        }
    }
    let (root, baked) = (root.to_owned(), baked.clone());
    // On a thread for it, so that Ctrl-C is heard meanwhile.
    let looking = tokio::task::spawn_blocking(move || {
        let layers = baked.layers().map(|layer| look_at(&root, &baked, layer, &pins, depth));
        layers.collect::<Result<Vec<_>, _>>()
    });
    let found = looking.await.expect("looking does not panic")?;
    findings.extend(found.into_iter().flatten());
    Ok(findings)
}

fn pin_of<'a>(image: &BakedImage, pins: &'a [Pin]) -> Option<&'a Pin> {
    let place = |pin: &&Pin| {
        (&pin.image, &pin.namespace, &pin.containerd)
            == (&image.image, &image.namespace, &image.containerd)
    };
    pins.iter().find(place)
}

fn check(image: &BakedImage, restore: bool) -> CheckPinRequest {
    let BakedImage { image, namespace, containerd, .. } = image.clone();
    CheckPinRequest { image, namespace, containerd, restore }
}

/// What is wrong with a layer; one that no pin has any more has been told with its image.
fn look_at(
    root: &Path,
    baked: &Baked,
    layer: &BakedLayer,
    pins: &[Pin],
    depth: Depth,
) -> Result<Vec<Finding>, CliError> {
    let kept = pins.iter().flat_map(|pin| &pin.trees).find(|tree| tree.tree == layer.tree);
    let Some(kept) = kept else { return Ok(Vec::new()) };
    let has = |image: &&BakedImage| image.layers.iter().any(|other| other.tree == layer.tree);
    let images: Vec<_> = baked.images.iter().filter(has).map(|image| image.image.clone()).collect();
    let finding = |path: Option<String>, what: String| Finding {
        images: images.clone(),
        layer: Some(layer.diff_id.clone()),
        path,
        what,
        mend: Mend::Pull,
    };
    let found = match listing::compare(Path::new(&kept.path), record::listing(root, layer)?, depth)
    {
        Ok(found) => found,
        Err(error @ listing::ListingError::Io { .. }) => {
            return Ok(vec![finding(None, error.to_string())]);
        }
        Err(error) => return Err(error.into()),
    };
    let mut findings: Vec<_> = found
        .iter()
        .take(TOLD)
        .map(|difference| finding(Some(difference.path.clone()), difference.what.clone()))
        .collect();
    if found.len() > TOLD {
        findings.push(finding(
            None,
            format!("{} more entries are not as they were", found.len() - TOLD),
        ));
    }
    Ok(findings)
}

/// Mends: what containerd lost is put there again, what is damaged here is let go and pulled anew. Then
/// it is noted again, since the layers that were pulled are others on disk.
async fn repair(
    client: &mut Client,
    args: &Bake,
    root: &Path,
    baked: &Baked,
    findings: &[Finding],
) -> Result<(), CliError> {
    let named = |mend: Mend| -> BTreeSet<&String> {
        findings.iter().filter(|f| f.mend == mend).flat_map(|f| &f.images).collect()
    };
    let (pulled, restored) = (named(Mend::Pull), named(Mend::Restore));
    let spoiled: Vec<_> = baked.images.iter().filter(|i| pulled.contains(&i.image)).collect();
    let known = pins(client).await?;
    for image in &spoiled {
        if pin_of(image, &known).is_some() {
            let BakedImage { image, namespace, containerd, .. } = (*image).clone();
            let request = ReleaseRequest { image, namespace, containerd };
            client.release(request).await.map_err(|status| refused(&status))?;
        }
    }
    let damaged = findings.iter().filter_map(|finding| finding.layer.as_deref()).collect();
    wait_until_gone(client, &damaged).await?;
    for image in &spoiled {
        let BakedImage { image, namespace, containerd, .. } = (*image).clone();
        let platform = args.platform.clone().unwrap_or_default();
        let request = PrefetchRequest { image, platform, namespace, containerd, keep_seconds: 0 };
        pull(client, request, args.quiet || args.json).await?;
    }
    for image in baked.images.iter().filter(|image| restored.contains(&image.image)) {
        client.check_pin(check(image, true)).await.map_err(|status| refused(&status))?;
    }
    if !spoiled.is_empty() {
        let (root, pins) = (root.to_owned(), pins(client).await?);
        let noting = tokio::task::spawn_blocking(move || record::write(&root, &pins));
        noting.await.expect("noting does not panic")?;
    }
    Ok(())
}

/// Waits until hoistd has none of these layers: a pull would take them for good as they are.
async fn wait_until_gone(client: &mut Client, layers: &BTreeSet<&str>) -> Result<(), CliError> {
    let began = Instant::now();
    loop {
        let trees = client.list_trees(ListTreesRequest {}).await.map_err(|s| told(&s))?;
        let left = trees.into_inner().trees.into_iter().find(|t| layers.contains(&*t.diff_id));
        let Some(left) = left else { return Ok(()) };
        if began.elapsed() > SWEPT {
            return Err(CliError::Daemon(format!(
                "the damaged layer {} is still used by {} snapshots of images or containers that were not baked; \
                 remove these, then repair again",
                short(&left.diff_id),
                left.snapshots
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
