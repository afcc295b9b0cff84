// The keys of a tree, as ARIA describes them. Its items have a function `toggle` where they open, and
// a function `follow`.

export function focusItem(element) {
  element.closest('[role=tree]').querySelector('[tabindex="0"]')?.setAttribute('tabindex', '-1');
  element.setAttribute('tabindex', '0');
  element.focus();
}

export function treeKey(event, tree) {
  const item = event.target.closest('[role=treeitem]');
  const seen = [...tree.querySelectorAll('[role=treeitem]')].filter(
    (one) => !one.parentElement.closest('[hidden]'),
  );
  const at = seen.indexOf(item);
  const open = item.getAttribute('aria-expanded') === 'true';
  const to = { ArrowDown: seen[at + 1], ArrowUp: seen[at - 1], Home: seen[0], End: seen.at(-1) }[
    event.key
  ];
  if (to) focusItem(to);
  else if (event.key === 'ArrowRight' && item.toggle) {
    if (open) focusItem(seen[at + 1]);
    else item.toggle(true);
  } else if (event.key === 'ArrowLeft') {
    if (open) item.toggle(false);
    else {
      const above = item.parentElement.closest('[role=treeitem]');
      if (above) focusItem(above);
    }
  } else if (event.key === 'Enter') item.follow();
  else if (event.key === ' ' && item.toggle) item.toggle();
  else if (!['ArrowDown', 'ArrowUp', 'ArrowRight'].includes(event.key)) return;
  event.preventDefault();
}
