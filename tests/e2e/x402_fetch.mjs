// The unmodified npm client pays a node or a gateway. Run by test_x402_npm.py: node --input-type=module - URL RPC KEY BODY CHAT_URL CHAT_BODY
// Prints one line of JSON for each step: status, round trips, what PAYMENT-RESPONSE charged, the receipt.
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from '@x402/fetch';
import { toClientEvmSigner } from '@x402/evm';
import { BatchSettlementEvmScheme } from '@x402/evm/batch-settlement/client';
import { createPublicClient, defineChain, http } from 'viem';
import { privateKeyToAccount } from 'viem/accounts';

const [url, rpc, key, body, chatUrl, chatBody] = process.argv.slice(-6);
const nativeCurrency = { name: 'Ether', symbol: 'ETH', decimals: 18 };
const chain = defineChain({ id: 31337, name: 'dev', nativeCurrency, rpcUrls: { default: { http: [rpc] } } });
const reader = createPublicClient({ chain, transport: http(rpc) });
const account = privateKeyToAccount(key);
let trips = 0;
const counted = (...request) => { trips += 1; return fetch(...request); };

function payer() {
  const client = new x402Client();
  client.setSpendControls?.(false);
  const scheme = new BatchSettlementEvmScheme(toClientEvmSigner(account, reader));
  client.register('eip155:31337', scheme);
  return wrapFetchWithPayment(counted, client);
}

async function step(name, pay, url_ = url, body_ = body) {
  trips = 0;
  const headers = { 'content-type': 'application/json' };
  const answer = await pay(url_, { method: 'POST', headers, body: body_ });
  const paid = answer.headers.get('payment-response');
  const charged = paid && decodePaymentResponseHeader(paid).extra?.chargedAmount;
  const receipt = answer.headers.get('inferpool-gateway-receipt') ?? answer.headers.get('inferpool-receipt');
  console.log(JSON.stringify({ name, status: answer.status, trips, charged, receipt, body: await answer.text() }));
}

const first = payer();
await step('deposit', first);
await step('voucher', first);
await step('voucher again', first);
await step('state lost', payer());
await step('chat', first, chatUrl, chatBody);
await step('stream', first, chatUrl, JSON.stringify({ ...JSON.parse(chatBody), stream: true }));
await step('after the stream', first);
await step('and its credit', first);
