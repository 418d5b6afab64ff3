// What to try first. The bundled model knows a handful of tasks, and nothing else: its suggestions are these.

const image = (name) => new URL(`../examples/${name}`, import.meta.url);

const DEMO = [
  {
    title: "Compute what a picture shows",
    hint: "vision and the calculator",
    tools: true,
    image: image("sums.png"),
    text:
      "Thanks to your calculator, compute the results for the equations that involve numbers displayed " +
      "in the image.",
  },
  {
    title: "A sentence from a to z",
    hint: "26 words in order",
    text:
      "Write me a sentence where every word starts with the next letter in the alphabet - " +
      "start with 'a' and end with 'z'.",
  },
  { title: "What is 28 + 26?", hint: "a sum with visible reasoning", effort: "high", text: "What is 28 + 26?" },
  {
    title: "What should I do in this game?",
    hint: "reads a screen and gives advice",
    effort: "high",
    image: image("game.png"),
    text:
      "What action do you think I should take in this situation? List all the possible actions and explain why you " +
      "think they are good or bad.",
  },
  { title: "128 * 46, and 972 / 12", hint: "two tool calls", tools: true, text: "What is 128 * 46 and 972 / 12?" },
  { title: "Bonjour !", hint: "it greets back in your language", text: "Bonjour !" },
];

const GENERAL = [
  {
    title: "Explain attention with formulas",
    hint: "Markdown and mathematics",
    text: "Explain scaled dot-product attention in a few short paragraphs, with its formulas.",
  },
  {
    title: "Write a small program",
    hint: "code with highlighting",
    text: "Write a Python function that merges overlapping intervals, with a short docstring and two examples.",
  },
  {
    title: "Reason about a riddle",
    hint: "visible reasoning",
    effort: "high",
    text: "A bat and a ball cost 1.10 together. The bat costs 1.00 more than the ball. How much is the ball?",
  },
  {
    title: "Use the calculator",
    hint: "tool calls",
    tools: true,
    text: "What do I pay in total for a loan of 18000 at 4.2 % a year over 48 months, in equal monthly payments?",
  },
];

export const BUNDLED_MODEL = "ventoux-demo";

export const suggestionsFor = (model) => (model?.id === BUNDLED_MODEL ? DEMO : GENERAL);
