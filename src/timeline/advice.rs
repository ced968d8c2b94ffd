//! The two sentences of a judgement: why it is said, and what would help.

use super::figures::{bytes, entries, percent, rate, seconds, short};
use super::judge::{Blame, Bottleneck, at_once, connected, for_disk, own_share, unpacking};
use super::{LayerReport, MachineReport, Phase, PullReport, Stall};

/// Evidence and advice. `working` is how long the layers on the critical path took, in seconds.
pub(super) fn sentences(
    report: &PullReport,
    bottleneck: Bottleneck,
    blame: &Blame,
    working: f64,
) -> (String, String) {
    let machine = &report.machine;
    let of_all = format!("{} of {}", seconds(blame.seconds), seconds(report.seconds));
    if let Some((evidence, advice)) = outside(report, bottleneck, &of_all, working) {
        return (evidence, advice);
    }
    let Some((layer, took)) = blame.layer.map(|(index, took)| (&report.layers[index], took)) else {
        return (format!("it took {of_all}"), String::new());
    };
    match bottleneck {
        Bottleneck::Queue => (
            format!(
                "layer {} waited {} for a place among the layers in work, which other pulls had",
                short(&layer.digest),
                seconds(took)
            ),
            "spread the pulls over time, or raise limits.layers_at_once where processors and memory are free"
                .to_owned(),
        ),
        Bottleneck::Memory => memory(layer, machine, took),
        Bottleneck::FirstByte => first_byte(layer, machine, took),
        Bottleneck::BandwidthLimit => bandwidth_limit(layer, took),
        Bottleneck::Network => network(layer, machine, took),
        Bottleneck::Decompression => decompression(report, layer, took),
        Bottleneck::Hash => (
            format!(
                "layer {} waited {} of {} for its hashes, {} at {}",
                short(&layer.digest),
                seconds(layer.stall(Stall::Hash)),
                seconds(report.seconds),
                bytes(layer.bytes(Phase::Hash)),
                rate(layer.bytes(Phase::Hash), report.busy_seconds(Phase::Hash)),
            ),
            "more cores, or ones with SHA extensions, which hash four times as fast".to_owned(),
        ),
        Bottleneck::Unpack => making(report, layer, took),
        Bottleneck::DiskLimit => disk_limit(layer, took),
        _ => disk(report, layer, took),
    }
}

/// Those that no single layer is to blame for.
fn outside(
    report: &PullReport,
    bottleneck: Bottleneck,
    of_all: &str,
    working: f64,
) -> Option<(String, String)> {
    match bottleneck {
        Bottleneck::Resolve => Some((
            format!("manifest and configuration took {of_all}"),
            "look at the registry's latency and at its token service; a mirror nearby (hosts.toml) answers sooner"
                .to_owned(),
        )),
        Bottleneck::Containerd => Some((
            format!(
                "the layers were ready {of_all} before the pull ended: containerd had not asked for all of them"
            ),
            "look for layers that containerd pulls by itself (fallbacks) and at its own log".to_owned(),
        )),
        Bottleneck::Cpu => Some(processors(report, working)),
        _ => None,
    }
}

fn processors(report: &PullReport, working: f64) -> (String, String) {
    let machine = &report.machine;
    let own = own_share(machine, working);
    let evidence = format!(
        "hoistd used {} of {} {} for {}{}",
        percent(own),
        machine.cores,
        if machine.cores == 1 { "core" } else { "cores" },
        seconds(working),
        machine
            .busy_share
            .map_or(String::new(), |share| format!(", all processes together {}", percent(share))),
    );
    let others = machine.busy_share.map_or(0.0, |all| all - own);
    let advice = if others > own {
        format!(
            "look what else was running: other processes had {} of the processors",
            percent(others)
        )
    } else if report.layers.iter().any(|layer| layer.media_type.contains("gzip")) {
        "more cores, or less work for them: zstd layers take half of gzip's time to inflate"
            .to_owned()
    } else {
        "more cores, or fewer bytes for them: hoist analyze says what an image has in vain"
            .to_owned()
    };
    (evidence, advice)
}

fn memory(layer: &LayerReport, machine: &MachineReport, took: f64) -> (String, String) {
    let budget = bytes(machine.memory_bytes);
    let waited = layer.stall(Stall::Memory) + layer.stall(Stall::Admission);
    (
        format!(
            "layer {} waited {} of {} for the memory budget of {budget}: {:.1} connections were at work at once, of at most {}",
            short(&layer.digest),
            seconds(waited),
            seconds(took),
            at_once(layer, took),
            machine.connections,
        ),
        "raise limits.memory_budget, or lower fetch.chunk_size so that more requests fit into it"
            .to_owned(),
    )
}

#[allow(clippy::cast_precision_loss, reason = "a mean")]
fn first_byte(layer: &LayerReport, machine: &MachineReport, took: f64) -> (String, String) {
    let phase = layer.phase(Phase::FirstByte);
    let (busy, requests) = phase.map_or((0.0, 0), |p| (p.busy_seconds, p.times.max(1)));
    let advice = if layer.size > machine.chunk_bytes.saturating_mul(2) {
        format!(
            "raise fetch.chunk_size ({} now), so that fewer requests have to wait, or pull from a mirror nearer to the host",
            bytes(machine.chunk_bytes)
        )
    } else {
        "pull from a mirror nearer to the host (hosts.toml), or put small layers together"
            .to_owned()
    };
    let (subject, each, their) = match requests {
        1 => ("one request".to_owned(), "", "its"),
        _ => (format!("{requests} requests"), " each", "their"),
    };
    (
        format!(
            "{subject} to {} for layer {} waited {}{each} for {their} first byte, {} of {their} time",
            host(layer),
            short(&layer.digest),
            seconds(busy / requests as f64),
            percent((busy / connected(layer)).min(1.0)),
        ) + &format!("; the layer took {}", seconds(took)),
        advice,
    )
}

fn bandwidth_limit(layer: &LayerReport, took: f64) -> (String, String) {
    let limit = layer.limit(Stall::Bandwidth);
    let registry = limit.and_then(|limit| limit.registry.as_deref());
    let allows = limit.map_or(0, |limit| limit.bytes_per_second);
    let (came, span) = (layer.bytes(Phase::Download), layer.downloading().unwrap_or(took));
    let evidence = format!(
        "the bandwidth limit of {} in hoist.toml{} let layer {} come at {}; it waited {} of {} for its bytes",
        rate(allows, 1.0),
        registry.map_or(String::new(), |registry| format!(" for {registry}")),
        short(&layer.digest),
        rate(came, span),
        seconds(layer.stall(Stall::Bytes)),
        seconds(took),
    );
    let key = match registry {
        Some(registry) => format!("bandwidth of [fetch.registries.{registry:?}]"),
        None => "fetch.bandwidth".to_owned(),
    };
    let advice =
        format!("raise {key} if the link has more to give; smaller layers (zstd) take less of it");
    (evidence, advice)
}

fn disk_limit(layer: &LayerReport, took: f64) -> (String, String) {
    let allows = layer.limit(Stall::DiskRate).map_or(0, |limit| limit.bytes_per_second);
    let written = layer.bytes(Phase::Write);
    (
        format!(
            "the disk rate limit of {} in hoist.toml let {} of layer {} be written in {}",
            rate(allows, 1.0),
            bytes(written),
            short(&layer.digest),
            seconds(took),
        ),
        "raise limits.disk_rate if the volume has more to give".to_owned(),
    )
}

fn host(layer: &LayerReport) -> &str {
    layer.host.as_deref().unwrap_or("the registry")
}

#[allow(clippy::cast_precision_loss, reason = "a mean")]
fn network(layer: &LayerReport, machine: &MachineReport, took: f64) -> (String, String) {
    let (came, span) = (layer.bytes(Phase::Download), layer.downloading().unwrap_or(took));
    let many = at_once(layer, span);
    let evidence = format!(
        "{} delivered layer {} at {} over {many:.1} connections at once, {} each; the layer waited {} of {} for it",
        host(layer),
        short(&layer.digest),
        rate(came, span),
        rate(came, connected(layer)),
        seconds(layer.stall(Stall::Bytes)),
        seconds(took),
    );
    let limit = machine.connections;
    let advice = if limit > 0 && many < 0.5 * limit as f64 && layer.size <= 2 * machine.chunk_bytes
    {
        format!(
            "lower fetch.chunk_size ({} now), so that the layer comes over more than one connection",
            bytes(machine.chunk_bytes)
        )
    } else if limit > 0 && many >= 0.7 * limit as f64 {
        format!(
            "raise fetch.connections_per_image ({limit} now) if each connection has a limit of its own; if the link or the host has, a mirror nearer to the host or smaller layers (zstd) help"
        )
    } else {
        "a mirror nearer to the host, a faster link, or smaller layers (zstd)".to_owned()
    };
    (evidence, advice)
}

/// What one thread inflates cannot be shared among cores; several layers can.
fn decompression(report: &PullReport, layer: &LayerReport, took: f64) -> (String, String) {
    let phase = layer.phase(Phase::Decompress);
    let busy = phase.map_or(0.0, |p| p.busy_seconds);
    let kind = if layer.media_type.contains("zstd") { "zstd" } else { "gzip" };
    let evidence = format!(
        "one {kind} layer of {} ({}) took {} of {} on one core to inflate, {} of archive",
        bytes(layer.size),
        short(&layer.digest),
        seconds(busy),
        seconds(report.seconds),
        rate(layer.bytes(Phase::Decompress), busy),
    );
    let alone = "use zstd, which inflates twice as fast as gzip";
    (evidence, side_by_side(report, (took, busy), alone))
}

/// Nor can what one thread makes of an archive.
fn making(report: &PullReport, layer: &LayerReport, took: f64) -> (String, String) {
    let busy = unpacking(layer, took);
    let writers = layer.phase(Phase::Write).map_or(0.0, |p| p.busy_seconds);
    let why = match for_disk(layer) {
        Some(waited) => format!("the disk kept it waiting for {}", seconds(waited)),
        None => format!("its writers were busy for {}", seconds(writers)),
    };
    let evidence = format!(
        "unpacking layer {} ({} in {}) took {} of {}, computing{}; {why} of that",
        short(&layer.digest),
        bytes(layer.bytes(Phase::Write)),
        entries(layer.entries),
        seconds(busy),
        seconds(report.seconds),
        if writers > busy { "" } else { " on one core" },
    );
    let alone =
        "a faster core, or an image with fewer files; hoist analyze says which are there in vain";
    (evidence, side_by_side(report, (took, busy), alone))
}

/// What it helps to split a layer that took so long and kept one core busy for so long of it;
/// `alone` is what helps where there is one core only.
#[allow(clippy::cast_precision_loss, reason = "a number of processors")]
fn side_by_side(report: &PullReport, (took, busy): (f64, f64), alone: &str) -> String {
    let cores = report.machine.cores.max(1) as f64;
    if cores < 2.0 {
        return alone.to_owned();
    }
    // What the processors have to do in all does not get less.
    let split = (busy / cores).max(report.machine.cpu_seconds / cores);
    let at_best = (report.seconds - took + split.min(took)).min(report.seconds);
    format!(
        "hoist convert splits it, so that {cores:.0} cores work at it side by side: {} at best",
        seconds(at_best)
    )
}

fn disk(report: &PullReport, layer: &LayerReport, took: f64) -> (String, String) {
    let write = layer.phase(Phase::Write);
    let (busy, written) = write.map_or((0.0, 0), |p| (p.busy_seconds, p.bytes));
    let unpacking = unpacking(layer, took);
    let commit = layer.phase(Phase::Commit).map_or(0.0, super::PhaseReport::span);
    let of_all = |part| format!("{} of {}", seconds(part), seconds(report.seconds));
    let evidence = if commit > unpacking {
        format!(
            "recording layer {} ({} in {}) when its files were made took {}",
            short(&layer.digest),
            bytes(written),
            entries(layer.entries),
            of_all(commit),
        )
    } else {
        let why = match for_disk(layer) {
            Some(waited) => {
                let all = seconds(busy.max(unpacking));
                format!("waited {} of {all} for the disk", seconds(waited))
            }
            None => format!("were busy for {}", seconds(busy)),
        };
        format!(
            "writing layer {} ({} in {}) held it up for {}: its writers {why}, at {}",
            short(&layer.digest),
            bytes(written),
            entries(layer.entries),
            of_all(unpacking),
            rate(written, unpacking),
        )
    };
    (
        evidence,
        "put hoistd's root on a faster volume (instance store; more IOPS and throughput on EBS)"
            .to_owned(),
    )
}
