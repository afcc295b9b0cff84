// Asks for a token, and says why.

import * as api from './api.js';
import { h, icon, mark, replace } from './dom.js';
import { themeButton } from './shell.js';

const WHY = {
  expired: 'Your session has ended. Sign in again to go on where you were.',
  left: 'You have signed out.',
  none: 'Sign in with a token to browse datasets and restore files.',
};

/** `refused`: what the server said of a token that came with the address. */
export function loginView(main, why, signedIn, refused) {
  document.title = 'Sign in · ZeroFS';
  document.body.classList.remove('filling');
  document.querySelectorAll('dialog').forEach((open) => open.close());
  const said = h('div', { role: 'alert' });
  const token = h('input', {
    type: 'password',
    id: 'token',
    autocomplete: 'current-password',
    required: true,
    spellcheck: 'false',
    'aria-describedby': 'token-help',
  });
  const button = h('button', { class: 'primary', type: 'submit' }, 'Sign in');
  const refuse = (text) =>
    replace(
      said,
      h('div', { class: 'notice bad' }, icon('error'), h('span', { class: 'break' }, text)),
    );
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await api.login(token.value.trim());
      await signedIn();
    } catch (error) {
      refuse(error.message);
      token.focus();
      token.select();
    } finally {
      button.disabled = false;
    }
  };
  replace(
    main,
    h(
      'div',
      { class: 'login' },
      h(
        'div',
        { class: 'row apart' },
        h('div', { class: 'row' }, mark(), h('span', { class: 'strong' }, 'ZeroFS')),
        themeButton(),
      ),
      h(
        'form',
        { class: 'card stack wide', onsubmit: submit },
        h(
          'div',
          { class: 'stack' },
          h('h1', null, 'Sign in'),
          h('p', { class: 'soft' }, WHY[why] ?? WHY.none),
        ),
        said,
        h('div', { class: 'field' }, h('label', { for: 'token' }, 'Token'), token),
        button,
      ),
      h(
        'details',
        { class: 'soft small', id: 'token-help' },
        h('summary', null, 'Where do I get a token?'),
        h(
          'p',
          null,
          'The server prints an address with a one-time token when it starts. Whoever runs it makes lasting ones:',
        ),
        h('p', null, h('code', null, 'zerofs-csi token create --name you --role restorer')),
      ),
    ),
  );
  if (refused) refuse(refused);
  token.focus();
}
