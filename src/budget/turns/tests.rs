use super::*;

/// Places of which each party may have so many.
struct Places {
    free: u64,
    most: u64,
    taken: HashMap<Party, u64>,
}

impl Scarce for Places {
    type Want = u64;

    fn verdict(&self, who: Claimant, want: &u64) -> Verdict {
        if self.taken.get(&who.party).copied().unwrap_or_default() + want > self.most {
            Verdict::PassOver
        } else if *want > self.free {
            Verdict::Wait
        } else {
            Verdict::Go
        }
    }

    fn take(&mut self, who: Claimant, want: &u64) {
        self.free -= want;
        add(&mut self.taken, who.party, *want);
    }

    fn give_back(&mut self, who: Claimant, want: &u64) {
        self.free += want;
        subtract(&mut self.taken, who.party, *want);
    }

    fn weight(want: &u64) -> u64 {
        *want
    }
}

fn gate(free: u64, most: u64) -> Gate<Places> {
    Gate::new(Places { free, most, taken: HashMap::new() })
}

const MB: u64 = 1_000_000;

fn layer(party: Party, megabytes: u64) -> Arc<Standing> {
    Standing::new(party, megabytes * MB, 100 * MB)
}

/// A line of named requests, and who of them is let in.
struct Line {
    gate: Gate<Places>,
    waiting: Vec<(String, Entering<Places>)>,
}

impl Line {
    fn join(&mut self, name: &str, standing: &Arc<Standing>, want: u64) {
        self.waiting.push((name.to_owned(), self.gate.enter(standing, want)));
    }

    /// Who has been let in since, in the order of joining.
    fn let_in(&mut self) -> Vec<(String, Held<Places>)> {
        let mut held = Vec::new();
        for (name, entering) in std::mem::take(&mut self.waiting) {
            match entering.granted() {
                Ok(place) => held.push((name, place)),
                Err(entering) => self.waiting.push((name, entering)),
            }
        }
        held
    }

    /// Lets one in after the other, each when the one before has left.
    fn order(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let held = self.let_in();
            assert!(held.len() <= 1);
            let Some((name, _)) = held.into_iter().next() else { return names };
            names.push(name);
        }
    }
}

fn blocked(free: u64) -> (Line, Held<Places>) {
    let gate = gate(free, u64::MAX);
    let all = gate.try_enter(&Standing::ahead(Party::NOBODY), free).unwrap();
    (Line { gate, waiting: Vec::new() }, all)
}

#[test]
fn the_longest_work_left_goes_first_as_it_is_now() {
    let (mut line, all) = blocked(1);
    let party = Party::new();
    let (long, short) = (layer(party, 900), layer(party, 100));
    // Fewer bytes, but slower to work on: nine seconds against three.
    let slow = Standing::new(party, 300 * MB, 20 * MB);
    line.join("short", &short, 1);
    line.join("long 1", &long, 1);
    line.join("long 2", &long, 1);
    line.join("slow", &slow, 1);
    long.worked(600 * MB);
    drop(all);
    assert_eq!(line.order(), ["slow", "long 1", "long 2", "short"]);
}

#[test]
fn a_layer_that_a_prepare_waits_for_never_has_nothing() {
    let (mut line, all) = blocked(1);
    let party = Party::new();
    let (long, asked) = (layer(party, 900), layer(party, 1));
    line.join("long", &long, 1);
    line.join("asked 1", &asked, 1);
    line.join("asked 2", &asked, 1);
    asked.ask_for();
    drop(all);
    let first = line.let_in();
    assert_eq!(first[0].0, "asked 1");
    // It holds something now: what is longest goes first again.
    line.gate.with(|places| places.free += 1);
    assert_eq!(line.let_in()[0].0, "long");
}

#[test]
fn two_parties_share_evenly_whatever_each_asks_for() {
    let (mut line, all) = blocked(8);
    let (one, two) = (Party::new(), Party::new());
    let (huge, tiny) = (layer(one, 90_000), layer(two, 1));
    for n in 0..20 {
        line.join(&format!("huge {n}"), &huge, 1);
    }
    for n in 0..20 {
        line.join(&format!("tiny {n}"), &tiny, 1);
    }
    drop(all);
    let held = line.let_in();
    assert_eq!(held.len(), 8);
    assert_eq!(held.iter().filter(|(name, _)| name.starts_with("tiny")).count(), 4);
    // Where one party wants no more, the other has all.
    line.waiting.retain(|(name, _)| name.starts_with("huge"));
    drop(held);
    assert_eq!(line.let_in().len(), 8);
}

#[test]
fn nobody_is_overtaken_for_ever() {
    let (mut line, all) = blocked(1);
    let party = Party::new();
    let (long, short) = (layer(party, 900), layer(party, 1));
    line.join("short", &short, 1);
    line.join("long", &long, 1);
    drop(all);
    let mut overtaken = 0;
    loop {
        let held = line.let_in();
        let (name, _place) = &held[0];
        if name == "short" {
            break;
        }
        overtaken += 1;
        line.join("long", &long, 1);
    }
    assert_eq!(overtaken, OVERTAKEN_MOST);
}

#[test]
fn a_large_request_is_waited_for() {
    let (mut line, all) = blocked(8);
    let party = Party::new();
    let (long, short) = (layer(party, 900), layer(party, 1));
    line.join("short", &short, 1);
    line.join("large", &long, 6);
    drop(all);
    // Both fit. Six more do not, and nothing smaller goes before them.
    let held = line.let_in();
    assert_eq!(held.len(), 2);
    line.join("large", &long, 6);
    line.join("short", &short, 1);
    assert!(line.let_in().is_empty());
    // Who gives up does not hold up the others.
    line.waiting.remove(0);
    assert_eq!(line.let_in()[0].0, "short");
}

#[test]
fn who_waits_for_another_thing_is_passed_over() {
    let gate = gate(4, 2);
    let (one, two) = (layer(Party::new(), 900), layer(Party::new(), 1));
    let mut line = Line { gate, waiting: Vec::new() };
    for name in ["one", "one", "one", "two"] {
        line.join(name, if name == "one" { &one } else { &two }, 1);
    }
    let held = line.let_in();
    assert_eq!(
        held.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["one", "one", "two"]
    );
    assert!(line.gate.has_waiting());
    drop(held);
    assert_eq!(line.let_in().len(), 1);
}

#[test]
fn who_leaves_after_being_let_in_gives_it_back() {
    let gate = gate(1, 1);
    let standing = layer(Party::new(), 1);
    let entering = gate.enter(&standing, 1);
    assert!(gate.try_enter(&standing, 1).is_none());
    drop(entering);
    assert!(gate.try_enter(&standing, 1).is_some());
    let state = gate.state();
    assert!(state.of_parties.is_empty() && state.of_layers.is_empty());
}

fn later(megabytes: u64) -> Arc<Standing> {
    layer(Party::new(), megabytes).of_class(Class::Ahead)
}

#[test]
fn what_somebody_waits_for_goes_before_what_is_ahead_of_time() {
    let (mut line, all) = blocked(1);
    let (prefetch, waited) = (later(90_000), layer(Party::new(), 1));
    line.join("prefetch 1", &prefetch, 1);
    line.join("prefetch 2", &prefetch, 1);
    line.join("waited", &waited, 1);
    // A Prepare of a layer's own is not what makes the difference.
    prefetch.ask_for();
    drop(all);
    assert_eq!(line.order(), ["waited", "prefetch 1", "prefetch 2"]);
}

#[test]
fn a_promoted_layer_goes_as_if_it_had_been_waited_for_all_along() {
    let (mut line, all) = blocked(1);
    let (prefetch, other) = (later(900), later(9000));
    let waited = layer(Party::new(), 100);
    line.join("other", &other, 1);
    line.join("waited", &waited, 1);
    line.join("promoted", &prefetch, 1);
    prefetch.promote();
    drop(all);
    assert_eq!(line.order(), ["promoted", "waited", "other"]);
}

#[test]
fn a_promotion_changes_nothing_about_what_is_held() {
    let gate = gate(2, 2);
    let prefetch = later(1);
    let held = gate.try_enter(&prefetch, 1).unwrap();
    assert_eq!(held.who.class, Class::Ahead);
    prefetch.promote();
    assert_eq!(held.who.class, Class::Ahead);
    assert_eq!(gate.try_enter(&prefetch, 1).unwrap().who.class, Class::Waited);
}

proptest::proptest! {
    /// However many of each class come in whatever order, and however large they are: while somebody is
    /// waited for, those ahead of time get one in every so many, no fewer and no more.
    #[test]
    fn those_ahead_of_time_get_little_and_are_never_forgotten(
        rivals in proptest::collection::vec((1..4_u64, 1..900_u64), 1..5),
        prefetches in proptest::collection::vec((1..4_u64, 1..90_000_u64), 1..9),
    ) {
        let most = rivals.iter().chain(&prefetches).map(|(want, _)| *want).max().unwrap();
        let (mut line, all) = blocked(most);
        for (want, megabytes) in &prefetches {
            line.join("ahead", &later(*megabytes), *want);
        }
        let waited: Vec<_> =
            rivals.iter().map(|(want, megabytes)| (*want, layer(Party::new(), *megabytes))).collect();
        for (want, standing) in &waited {
            // Two each, so that somebody waits while one of them is served.
            line.join("waited", standing, *want);
            line.join("waited", standing, *want);
        }
        drop(all);
        let (mut order, mut served) = (Vec::new(), 0);
        while order.len() < 400 {
            let mut held = line.let_in();
            proptest::prop_assert!(!held.is_empty(), "it stands still after {order:?}");
            order.extend(held.iter().map(|(name, _)| name.clone()));
            // One leaves at a time; whoever was waited for comes again.
            for (name, place) in held.drain(..) {
                if name == "waited" {
                    let (want, standing) = &waited[served % waited.len()];
                    line.join("waited", standing, *want);
                    served += 1;
                }
                drop(place);
            }
        }
        let prefetched = order.iter().filter(|name| *name == "ahead").count();
        let turns = order.len() / (OVERTAKEN_MOST as usize + 1);
        proptest::prop_assert!(prefetched <= turns + 1, "{prefetched} of {}: {order:?}", order.len());
        let due = turns.saturating_sub(1).min(prefetches.len());
        proptest::prop_assert!(prefetched >= due, "{prefetched} of {}: {order:?}", order.len());
    }
}
