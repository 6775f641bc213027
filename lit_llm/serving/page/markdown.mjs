// Markdown: from text to trees [tag, [trees and strings], class or language]; nothing here knows the page.

const DEEPEST = 8;  // lists and quotes inside each other; what is deeper is text
const MOST_COLUMNS = 64;
const MOST_OPEN = 12;  // marks of emphasis that wait for their end
const EMPHASIS = { "*": "em", "_": "em", "**": "strong", "__": "strong", "~~": "del" };
export const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/, QUOTE = /^ {0,3}>/;
const LINK = /!?\[([^\[\]\n]{0,999})\]\(<?((?:[^()<>\s]|\([^()<>\s]{0,199}\)){1,1999})>?(?: "[^"\n]{0,199}")?\)/y;
const ADDRESS = /<(https?:\/\/[^<>\s]{1,1999})>/y;

export function markdownOf(text) {
  const lines = text.split("\n");
  return blocksOf(lines, 0).map(([tree, from, to]) => [tree, lines.slice(from, to).join("\n")]);
}

export function fencesOf(text) {
  // what a user wrote is shown as it is, but for fenced code
  const lines = text.split("\n"), blocks = [];
  let plain = [];
  const close = () => {
    const text = plain.join("\n").replace(/^\n+/, "").trimEnd();
    if (text) blocks.push([["p", [text]], text]);
    plain = [];
  };
  for (let at = 0; at < lines.length;) {
    const fence = fenceAt(lines, at);
    if (fence) {
      close();
      blocks.push([fence[0], lines.slice(at, fence[1]).join("\n")]);
    } else {
      plain.push(lines[at]);
    }
    at = fence ? fence[1] : at + 1;
  }
  close();
  return blocks;
}

function blocksOf(lines, depth) {
  // [tree, first line, line after the last] of each block
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [tree, next] = blockAt(lines, at, depth) ?? paragraphAt(lines, at);
    blocks.push([tree, at, next]);
    at = next;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  // [tree, line after the last] where something other than a paragraph begins
  return fenceAt(lines, at) ?? headingAt(lines, at) ?? quoteAt(lines, at, depth) ?? ruleAt(lines, at)
    ?? listAt(lines, at, depth) ?? tableAt(lines, at);
}

function startsBlock(lines, at) {
  // whether a paragraph ends before this line; looks at no other but the next
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || isRule(line) || itemOf(line) || columnsOf(lines, at);
}

function fenceAt(lines, at) {
  // a fence without an end is still being written
  const found = FENCE.exec(lines[at]);
  if (!found) return null;
  const [, indent, mark, language] = found, code = [];
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const bare = lines[end].trim();
    if (bare.startsWith(mark) && bare === mark[0].repeat(bare.length)) break;
    code.push(dedented(lines[end], indent.length));
  }
  return [["figure", [code.join("\n")], language.trim() || "code"], Math.min(end + 1, lines.length)];
}

function headingAt(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  const text = found[2].trim().replace(/[ \t]#+$/, "");
  return [[`h${Math.min(found[1].length + 1, 6)}`, inlineOf(text)], at + 1];  // h1 is the model's name
}

function isRule(line) {
  return /^(-{3,}|\*{3,}|_{3,})$/.test(line.replaceAll(" ", ""));
}

function ruleAt(lines, at) {
  return isRule(lines[at]) ? [["hr", []], at + 1] : null;
}

function quoteAt(lines, at, depth) {
  if (depth >= DEEPEST || !QUOTE.test(lines[at])) return null;
  const inside = [];
  let end = at;
  for (; end < lines.length && QUOTE.test(lines[end]); end += 1) {
    inside.push(lines[end].trimStart().replace(/^> ?/, ""));
  }
  return [["blockquote", blocksOf(inside, depth + 1).map(([tree]) => tree)], end];
}

function itemOf(line) {
  const found = /^([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+|$)/.exec(line);
  if (!found) return null;
  const indent = columns(found[1]), ordered = /\d/.test(found[2]);
  return { indent, ordered, number: parseInt(found[2]), text: line.slice(found[0].length), inside: indent + found[2].length + 1 };
}

function listAt(lines, at, depth) {
  const first = itemOf(lines[at]);
  if (!first || depth >= DEEPEST) return null;
  const goesOn = (line) => {
    const item = itemOf(line);
    return item && item.ordered === first.ordered && item.indent <= first.indent ? item : null;
  };
  const items = [];
  let end = at;
  for (let item = first; item && !isRule(lines[end]); item = end < lines.length ? goesOn(lines[end]) : null) {
    const content = [item.text];
    for (end += 1; end < lines.length;) {
      let filled = end;
      while (filled < lines.length && !lines[filled].trim()) filled += 1;
      const line = lines[filled] ?? "", deeper = columns(/^[ \t]*/.exec(line)[0]) > first.indent;
      if (filled > end && !deeper) {  // after an empty line, only what is indented belongs to the item
        if (filled < lines.length && goesOn(line)) end = filled;
        break;
      }
      if (!deeper && startsBlock(lines, filled)) break;
      if (filled > end) content.push("");
      content.push(dedented(line, item.inside));
      end = filled + 1;
    }
    const trees = blocksOf(content, depth + 1).map(([tree]) => tree);
    const opening = trees[0]?.[0] === "p" ? trees.shift()[1] : [];
    items.push(["li", [...opening, ...trees]]);
  }
  return [[first.ordered ? "ol" : "ul", items, first.ordered ? first.number : ""], end];
}

function cellsOf(line) {
  return line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());
}

function columnsOf(lines, at) {
  // the names of a table's columns and the marks below them
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return null;
  const marks = cellsOf(lines[at + 1]), names = cellsOf(lines[at]);
  const fits = marks.length === names.length && marks.length <= MOST_COLUMNS;
  return fits && marks.every((mark) => /^:?-+:?$/.test(mark)) ? { names, marks } : null;
}

function tableAt(lines, at) {
  const head = columnsOf(lines, at);
  if (!head) return null;
  const { names, marks } = head;
  const sides = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : ""));
  const row = (cells, tag) => ["tr", cells.slice(0, names.length).map((cell, n) => [tag, inlineOf(cell), sides[n]])];
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|"); end += 1) rows.push(row(cellsOf(lines[end]), "td"));
  return [["table", [["thead", [row(names, "th")]], ["tbody", rows]]], end];
}

function paragraphAt(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end += 1;
  return [["p", inlineOf(lines.slice(at, end).join("\n").trim())], end];
}

function columns(space) {
  return space.replaceAll("\t", "    ").length;
}

function dedented(line, most) {
  let place = 0;
  for (let column = 0; column < most && (line[place] === " " || line[place] === "\t"); place += 1) {
    column += columns(line[place]);
  }
  return line.slice(place);
}

function inlineOf(text) {
  // emphasis, code and links; marks without an end are text, also while more is being written
  const open = [{ mark: "", children: [] }], unclosed = new Set(), marks = /[\\`*_~[!<]/g;
  const add = (piece) => {
    const { children } = open.at(-1);
    if (typeof piece === "string" && typeof children.at(-1) === "string") children[children.length - 1] += piece;
    else children.push(piece);
  };
  const giveUp = () => {
    const { mark, children } = open.pop();
    add(mark);
    children.forEach(add);
  };
  for (let at = 0; at < text.length;) {
    marks.lastIndex = at;
    const place = marks.exec(text)?.index ?? text.length;
    if (place > at) add(text.slice(at, place));
    at = place;
    const sign = text[at];
    if (sign === undefined) break;
    if (sign === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      add(text[at + 1]);
      at += 2;
    } else if (sign === "`") {
      at = addCode(text, at, add, unclosed);
    } else if (sign === "[" || sign === "!" || sign === "<") {
      at = addLink(text, at, add);
    } else {
      at = addMark(text, at, open, add, giveUp);
    }
  }
  while (open.length > 1) giveUp();
  return open[0].children;
}

function runAt(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function addCode(text, at, add, unclosed) {
  const size = runAt(text, at);
  let end = unclosed.has(size) ? -1 : text.indexOf("`", at + size);
  while (end >= 0 && runAt(text, end) !== size) end = text.indexOf("`", end + runAt(text, end));
  if (end < 0) {
    unclosed.add(size);
    add("`".repeat(size));
    return at + size;
  }
  const code = text.slice(at + size, end);
  add(["code", [code.startsWith(" ") && code.endsWith(" ") && code.trim() ? code.slice(1, -1) : code]]);
  return end + size;
}

function addLink(text, at, add) {
  // where a link leads is shown, and nothing can be clicked
  const form = text[at] === "<" ? ADDRESS : LINK;
  form.lastIndex = at;
  const found = form.exec(text);
  if (!found) {
    add(text[at]);
    return at + 1;
  }
  const target = found.at(-1), name = form === LINK ? found[1] : target;
  add(["span", [name || target], "link"]);
  if (name && name !== target) add(["span", [` (${target})`], "soft"]);
  return at + found[0].length;
}

function addMark(text, at, open, add, giveUp) {
  const sign = text[at], size = runAt(text, at), before = text[at - 1] ?? " ", after = text[at + size] ?? " ";
  const inWord = (letter) => sign === "_" && /[\p{L}\p{N}]/u.test(letter);
  const opens = !/\s/.test(after) && !inWord(before), closes = !/\s/.test(before) && !inWord(after);
  let left = size > 3 || (sign === "~" && size !== 2) ? 0 : size;
  if (!left) add(sign.repeat(size));
  while (left) {
    let place = closes ? open.length - 1 : 0;
    while (place > 0 && !(open[place].mark[0] === sign && open[place].mark.length <= left && open[place].children.length)) place -= 1;
    if (place > 0) {
      while (open.length - 1 > place) giveUp();
      const { mark, children } = open.pop();
      add([EMPHASIS[mark], children]);
      left -= mark.length;
    } else if (opens && open.length < MOST_OPEN) {
      open.push({ mark: sign.repeat(Math.min(left, 2)), children: [] });
      left -= Math.min(left, 2);
    } else {
      add(sign.repeat(left));
      left = 0;
    }
  }
  return at + size;
}
