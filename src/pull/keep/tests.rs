use std::time::Duration;

use super::*;

fn queue() -> (Sink, Taker) {
    let queue = Arc::new(Queue::default());
    (Sink(Arc::clone(&queue)), Taker(queue))
}

#[tokio::test]
async fn bytes_come_in_their_order_in_full_messages() {
    let (sink, taker) = queue();
    let all: Vec<u8> = (0..3 * MESSAGE_BYTES + 5).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let pieces = all.clone();
    let pushing = tokio::task::spawn_blocking(move || {
        // Smaller than a message, larger than one, none.
        for piece in
            [&pieces[..10], &[], &pieces[10..2 * MESSAGE_BYTES], &pieces[2 * MESSAGE_BYTES..]]
        {
            sink.push(Bytes::copy_from_slice(piece));
        }
    });
    let mut got = Vec::new();
    let mut lengths = Vec::new();
    while let Some(message) = taker.next().await {
        lengths.push(message.len());
        got.extend(message);
    }
    pushing.await.unwrap();
    assert_eq!(lengths, [MESSAGE_BYTES, MESSAGE_BYTES, MESSAGE_BYTES, 5]);
    assert!(got == all);
}

#[tokio::test]
async fn whoever_pushes_waits_and_is_let_go() {
    let (sink, taker) = queue();
    let (pushed, mut count) = tokio::sync::watch::channel(0_usize);
    let pushing = tokio::task::spawn_blocking(move || {
        for number in 1..=3 * BYTES_UNSENT / MESSAGE_BYTES {
            sink.push(Bytes::from(vec![0; MESSAGE_BYTES]));
            let _ = pushed.send(number);
        }
    });
    let full = BYTES_UNSENT / MESSAGE_BYTES;
    count.wait_for(|pushed| *pushed == full).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(*count.borrow(), full, "the bound was passed");
    taker.next().await.unwrap();
    count.wait_for(|pushed| *pushed == full + 1).await.unwrap();
    // Nobody takes any more.
    drop(taker);
    pushing.await.unwrap();
}
