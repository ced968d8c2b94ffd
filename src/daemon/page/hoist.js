"use strict";
// Keeps the page's live part up to date: asks the server for the same page and takes that part of it.
// The server draws once, for everybody; without this script one reloads.
(() => {
  const gone = document.getElementById("gone");
  const live = () => document.querySelector("[data-live]");

  async function refresh() {
    const answer = await fetch(location.pathname, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const [now, next] = [live(), page.querySelector("main")];
    const focused = now.contains(document.activeElement) && document.activeElement.getAttribute("href");
    now.replaceWith(document.adoptNode(next));
    if (focused) next.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  async function turn() {
    // Somebody who marks text must not lose it, and nobody looks at a hidden page.
    if (!document.hidden && getSelection().isCollapsed) {
      try {
        await refresh();
        gone.hidden = true;
      } catch {
        gone.hidden = false;
      }
    }
    // An ended pull does not change any more: its page has no live part.
    if (live()) setTimeout(turn, Number(live().dataset.live) * 1000);
  }

  if (live()) setTimeout(turn, Number(live().dataset.live) * 1000);
})();
