// An OpenID Connect provider whose sign-in page takes any name. Who is called ada or chief has groups.
import Provider from 'oidc-provider';

const [port, ...redirects] = process.argv.slice(1);
const groups = { ada: ['crew'], chief: ['crew', 'chiefs'] };
const scopes = 'openid profile groups';

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'faena',
    client_secret: 'the secret of the client',
    redirect_uris: redirects,
    response_types: ['code'],
    grant_types: ['authorization_code'],
  }],
  scopes: scopes.split(' '),
  claims: { openid: ['sub'], profile: ['name', 'preferred_username'], groups: ['groups'] },
  cookies: { keys: ['of the test'] },
  features: { devInteractions: { enabled: false } },
  pkce: { required: () => true },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: `${id} of the test`, preferred_username: 'root', groups: groups[id] ?? [] }),
  }),
  loadExistingGrant: async (context) => {
    const { client, session } = context.oidc;
    const grant = new context.oidc.provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope(scopes);
    await grant.save();
    return grant;
  },
  interactions: { url: (_, interaction) => `/sign-in/${interaction.uid}` },
});

// A test changes what is told of a person.
provider.use(async (context, next) => {
  if (context.path !== '/groups') return next();
  groups[context.query.of] = context.query.are.split(',').filter(Boolean);
  context.body = 'changed';
});

// Signing in is a form that the browser sends by itself.
provider.use(async (context, next) => {
  if (!context.path.startsWith('/sign-in/')) return next();
  if (context.method === 'POST') {
    const login = { accountId: context.query.name };
    return provider.interactionFinished(context.req, context.res, { login });
  }
  const name = context.cookies.get('name', { signed: false }) ?? 'ada';
  context.type = 'text/html';
  context.body = `<form method=post action="${context.path}?name=${name}"></form><script>document.forms[0].submit()</script>`;
});

provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
