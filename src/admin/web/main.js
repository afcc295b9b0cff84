// Starts the page: theme, session, then the view of the URL.

import * as api from './api.js';
import { applyTheme, session, signedIn, signedOut } from './shell.js';
import { failure } from './failure.js';
import { replace } from './dom.js';
import { show, start } from './router.js';
import { help, shortcuts } from './help.js';

applyTheme();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', applyTheme);

/** What the server said of the token in the address. */
let refused = null;
/** The view that asks for a token is shown. */
let asking = false;

async function ask(why) {
  if (asking) return;
  asking = true;
  signedOut();
  const { loginView } = await import('./login.js');
  loginView(document.getElementById('main'), why, open, refused);
  refused = null;
}

async function open() {
  asking = false;
  try {
    await signedIn();
    await show();
  } catch (error) {
    if (error.status === 401) return;
    replace(document.getElementById('main'), failure(error, open));
  }
}

document.addEventListener('session-ended', (event) =>
  ask(event.detail ?? (session() ? 'expired' : 'none')),
);

/** A one-time token comes in the fragment, which no server and no log sees. */
async function exchange() {
  const given = /^#token=(.+)$/.exec(location.hash);
  if (!given) return;
  history.replaceState(null, '', location.pathname + location.search);
  await api.login(decodeURIComponent(given[1])).catch((error) => {
    refused = error.message;
  });
}

start();
shortcuts(help);
await exchange();
await open();
