// The probabilities of an answer's tokens, as the server tells them; nothing here knows the page.

const LEAST = -9999;  // stands for minus infinity, which JSON has not
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export function tokensOf(choice) {
  // [{ text, share, others: [{ text, share }] }] of a piece of a stream; shares are from 0 to 1
  const told = choice?.logprobs;
  if (Array.isArray(told?.content)) {
    const one = (entry) => ({ text: spelled(entry), share: shareOf(entry.logprob) });
    return told.content.map((entry) => ({ ...one(entry), others: (entry.top_logprobs ?? []).map(one) }));
  }
  if (!Array.isArray(told?.tokens)) return [];
  return told.tokens.map((token, place) => ({
    text: ofName(token),
    share: shareOf(told.token_logprobs[place]),
    others: Object.entries(told.top_logprobs?.[place] ?? {})
      .map(([name, value]) => ({ text: ofName(name), share: shareOf(value) }))
      .sort((one, other) => other.share - one.share),
  }));
}

function shareOf(logProb) {
  return logProb <= LEAST ? 0 : Math.exp(logProb);
}

function spelled({ token, bytes }) {
  if (!Array.isArray(bytes)) return token;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes));
  } catch {  // a part of a character
    return bytes.map((byte) => `⟨${byte.toString(16).padStart(2, "0")}⟩`).join("");
  }
}

function ofName(name) {
  return name.startsWith("bytes:") ? name.slice(6).replace(/\\x([0-9a-f]{2})/g, "⟨$1⟩") : name;
}

export function inFlow(text) {
  // a token among others: lines break where they break
  return text.replace(/\r?\n/g, "↵\n").replace(/\t/g, "⇥\t");
}

export function alone(text) {
  // a token by itself: nothing of it is invisible
  const shown = text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣");
  return shown.replace(CONTROL, (letter) => `⟨U+${letter.codePointAt(0).toString(16).padStart(4, "0")}⟩`) || "∅";
}

export function percent(share) {
  if (share >= 0.9995) return share === 1 ? "100%" : "99.9+%";
  if (share < 0.0005) return share ? "<0.1%" : "0%";
  return share < 0.0995 ? `${(100 * share).toFixed(1)}%` : `${(100 * share).toFixed(share > 0.9949 ? 1 : 0)}%`;
}

export function level(share) {
  // one of five, from 0 for what was hardly expected
  return [0.1, 0.3, 0.6, 0.9].filter((bound) => share >= bound).length;
}

export function summaryOf(tokens) {
  // how sure the model was, in words for a note
  const known = tokens.filter((token) => token.share > 0);
  const mean = known.reduce((sum, token) => sum + Math.log(token.share), 0) / (known.length || 1);
  return known.length ? `perplexity ${Math.exp(-mean).toFixed(2)}` : "";
}
