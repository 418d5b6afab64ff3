// Python's arithmetic: whole numbers stay whole (BigInt), "/" gives a float, "//" and "%" round down. A parser of its
// own: nothing the model writes is ever run as code.

export function calculate(source) {
  if (typeof source !== "string" || source.length > 500) throw new Error("the expression is no short text");
  const tokens = source.match(/\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\*\*|\/\/|[-+*\/%^()]|\S/g) || [];
  let at = 0,
    depth = 0;
  const float = (v) => Number(v);
  const whole = (a, b) => typeof a === "bigint" && typeof b === "bigint";
  const zero = (v) => v === 0n || v === 0;

  function power(a, b) {
    if (whole(a, b) && b >= 0n) {
      if (b > 4096n || a.toString(16).length * Number(b) > 20000) throw new Error("the result is too large");
      return a ** b;
    }
    if (zero(a) && b < 0) throw new Error("division by zero");
    const value = float(a) ** float(b);
    if (Number.isNaN(value)) throw new Error("the result is no real number");
    return value;
  }
  function divide(op, a, b) {
    if (zero(b)) throw new Error("division by zero");
    if (op === "/") return float(a) / float(b);
    if (whole(a, b)) {
      let quotient = a / b;
      if (a % b !== 0n && a < 0n !== b < 0n) quotient -= 1n;
      return op === "//" ? quotient : a - quotient * b;
    }
    const quotient = Math.floor(float(a) / float(b));
    return op === "//" ? quotient : float(a) - quotient * float(b);
  }
  function combine(op, a, b) {
    if (op === "/" || op === "//" || op === "%") return divide(op, a, b);
    if (!whole(a, b)) {
      a = float(a);
      b = float(b);
    }
    return op === "+" ? a + b : op === "-" ? a - b : a * b;
  }
  function sum() {
    let value = product();
    while (tokens[at] === "+" || tokens[at] === "-") value = combine(tokens[at++], value, product());
    return value;
  }
  function product() {
    let value = signed();
    while (["*", "/", "//", "%"].includes(tokens[at])) value = combine(tokens[at++], value, signed());
    return value;
  }
  function signed() {
    if (tokens[at] === "-") {
      at++;
      return -nested(signed);
    }
    if (tokens[at] === "+") {
      at++;
      return nested(signed);
    }
    const base = atom();
    if (tokens[at] === "**" || tokens[at] === "^") {
      at++;
      return power(base, nested(signed));
    }
    return base;
  }
  function nested(rule) {
    if (++depth > 100) throw new Error("the expression is nested too deeply");
    const value = rule();
    depth--;
    return value;
  }
  function atom() {
    const token = tokens[at++];
    if (token === "(") {
      const value = nested(sum);
      if (tokens[at++] !== ")") throw new Error("a bracket is not closed");
      return value;
    }
    if (token === undefined) throw new Error("the expression ends too early");
    if (/^\d+$/.test(token)) return BigInt(token);
    if (/^[\d.]/.test(token) && token !== ".") return Number(token);
    throw new Error(`"${token}" is no arithmetic`);
  }

  const value = sum();
  if (at < tokens.length) throw new Error(`"${tokens[at]}" is one too many`);
  if (typeof value === "bigint") return value.toString();
  if (!Number.isFinite(value)) throw new Error("the result is too large");
  return Number.isInteger(value) && Math.abs(value) < 1e16 ? value.toFixed(1) : String(value);
}
