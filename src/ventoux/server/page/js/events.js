// Server-sent events, fed in portions of any size.

export function makeEventReader(onData) {
  // One call of onData per "data:" line; comments and other fields are left out.
  let held = "";
  return (text) => {
    const lines = (held + text).split("\n");
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) onData(line.slice(6));
  };
}
