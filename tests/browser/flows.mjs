// Flows through the coordinator's page in a headless Chromium: node flows.mjs URL JOB [TOKEN]
//
// With a token only the way in is tried, with ELASTIC_BREAK (a folder) only the break: files in it say when the coordinator
// is to go and to come back. Each flow fails with what it saw; screenshots go to ELASTIC_SHOTS, if set. ELASTIC_BROWSER is what `setup` printed.
import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const browserDir = process.env.ELASTIC_BROWSER, shots = process.env.ELASTIC_SHOTS;
const { chromium } = createRequire(browserDir + "/")("playwright-core");
const [url, job, token] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath: browserDir + "/chromium",
  args: ["--no-sandbox", "--headless=shell", "--disable-gpu"],
  env: { ...process.env, LD_LIBRARY_PATH: browserDir + "/lib", FONTCONFIG_PATH: browserDir },
});

async function open(options, path = "") {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.wrong = [];
  page.elsewhere = [];
  page.on("pageerror", (error) => page.wrong.push(String(error)));
  page.on("console", (message) => message.type() === "error" && page.wrong.push(message.text()));
  page.on("request", (request) => request.url().startsWith(url) || page.elsewhere.push(request.url()));
  page.on("dialog", (dialog) => (page.wrong.push("a dialog: " + dialog.message()), dialog.dismiss()));
  await page.goto(url + path);
  return page;
}

async function enter(page) {
  await page.getByLabel("Token").fill("not the token");
  await page.getByRole("button", { name: "Open" }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Token").fill(token);
  await page.keyboard.press("Enter");
}

const shot = (page, name) => shots && page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
const live = (page) => page.locator("#link[data-state=live]").waitFor();
/** The refused token is told on the console by the browser itself. */
const wrong = (page) => page.wrong.filter((text) => !/status of 401|status of 503/.test(text));

async function close(page) {
  assert.deepEqual(wrong(page), [], "nothing is wrong in the page");
  assert.deepEqual(page.elsewhere, [], "nothing is asked of others");
  await page.context().close();
}

const sideways = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

const wayIn = {
  async "who has no token is asked for one, a wrong one is refused, the right one opens"() {
    const page = await open({ viewport: { width: 900, height: 700 } });
    await page.getByRole("heading", { name: "Token" }).waitFor();
    await shot(page, "token");
    await enter(page);
    await live(page);
    await page.getByText("No job yet").waitFor();
    await page.reload();
    await live(page);
    await close(page);
  },
};

const breakDir = process.env.ELASTIC_BREAK;
const say = (what) => writeFileSync(`${breakDir}/${what}`, "");
const told = async (what) => { while (!existsSync(`${breakDir}/${what}`)) await new Promise((then) => setTimeout(then, 20)); };

const aBreak = {
  async "a coordinator that was away is told of, and logs and curves go on when it is back"() {
    const training = await open({ viewport: { width: 1280, height: 900 } }, "/#/jobs/" + job);
    const printing = await open({ viewport: { width: 1280, height: 900 } }, "/#/jobs/" + process.env.ELASTIC_PRINTER);
    // The newest there is, if it is above another.
    const line = (above) => {
      const all = [...document.querySelectorAll(".logs span")].map((e) => +(/line (\d+)/.exec(e.textContent)?.[1] ?? 0));
      return Math.max(0, ...all) > above ? Math.max(...all) : 0;
    };
    const step = (above) => {
      const now = +(/step ([\d,]+):/.exec(document.querySelector(".curve p")?.textContent)?.[1].replaceAll(",", "") ?? 0);
      return now > above ? now : 0;
    };
    const longer = { timeout: 60000 };
    await training.waitForFunction(step, 0);
    await printing.waitForFunction(line, 0);
    say("ready");
    for (const page of [training, printing]) {
      await page.locator("#link[data-state=off]").waitFor();
      await page.getByRole("log").getByText("trying again").first().waitFor();
    }
    const [lastStep, lastLine] = [await training.evaluate(step, 0), await printing.evaluate(line, 0)];
    assert.ok(lastStep && lastLine, "what was shown stays while it is away");
    await shot(printing, "away");
    say("told");
    await told("back");
    for (const page of [training, printing]) await live(page);
    await training.waitForFunction(step, lastStep, longer);
    const first = await (await printing.waitForFunction(line, lastLine, longer)).jsonValue();
    await printing.waitForFunction(line, first);
    assert.equal(await printing.getByRole("log").getByText("trying again").count(), 0, "the lines are whole again");
    for (const page of [training, printing]) page.wrong = page.wrong.filter((text) => !/Failed to load resource|ERR_/.test(text));
    await close(training);
    await close(printing);
  },
};

const flows = {
  async "the list shows the job, by keyboard alone one comes to it, and its curves grow"() {
    const page = await open({ viewport: { width: 1280, height: 900 } });
    await live(page);
    const link = page.getByRole("link", { name: job });
    await link.waitFor();
    await shot(page, "jobs");
    for (let i = 0; i < 30 && !(await link.evaluate((a) => a === document.activeElement)); i++) await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: job }).waitFor();
    const curve = page.getByRole("img", { name: /^Loss/ });
    await page.waitForFunction(() => /step [\d,]+:/.test(document.querySelector(".curve p")?.textContent || ""));
    const told = () => page.locator(".curve p").first().textContent();
    const before = await told();
    await page.waitForFunction((before) => document.querySelector(".curve p").textContent !== before, before);
    await page.getByRole("table", { name: "Members" }).getByText("rank 0").waitFor();
    await page.getByRole("list", { name: /Views/ }).getByText("active").first().waitFor();
    const painted = await curve.evaluate((canvas) => new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size);
    assert.ok(painted > 8, "the curve is drawn");
    await curve.focus();
    const newest = await told();
    await page.keyboard.press("Home");
    await page.waitForFunction((newest) => document.querySelector(".curve p").textContent !== newest, newest);
    assert.equal(await page.locator(".curve p").first().getAttribute("aria-live"), "polite");
    await page.keyboard.press("Shift+Tab");
    await shot(page, "job");
    await close(page);
  },
  async "a fault and its cause come to be seen"() {
    const page = await open({ viewport: { width: 1280, height: 900 }, colorScheme: "dark" }, "/#/jobs/" + job);
    await page.getByRole("heading", { name: "Last fault" }).waitFor();
    await page.getByText("killed by signal 9").first().waitFor();
    await page.waitForTimeout(1500);
    await shot(page, "job-dark");
    await close(page);
  },
  async "what workers print is shown as it comes, and what looks like markup in it is text"() {
    const page = await open({ viewport: { width: 1280, height: 900 } }, "/#/jobs/" + process.env.ELASTIC_HOSTILE);
    const log = page.getByRole("log");
    await log.getByText("<img src=x onerror=alert(1)>").first().waitFor();
    assert.equal(await log.locator("img, script, a").count(), 0);
    const lines = await log.locator("span").count();
    await page.waitForFunction((lines) => document.querySelector(".logs").childElementCount > lines, lines);
    await close(page);
  },
  async "texts of others stay texts"() {
    const page = await open({ viewport: { width: 900, height: 700 } }, "/#/jobs/" + encodeURIComponent('<img src=x onerror=alert(1)>'));
    await page.waitForTimeout(500);
    assert.equal(await page.locator("main img").count(), 0);
    const blocked = await page.evaluate(() => {
      try { document.body.innerHTML += "<b>x</b>"; } catch (error) { return error.name; }
      return "was let through";
    });
    assert.equal(blocked, "TypeError", "markup from text is refused by the page's policy");
    page.wrong = [];
    await close(page);
  },
  async "text of a hostile stream becomes no element"() {
    const page = await open({ viewport: { width: 900, height: 700 } });
    const evil = '<img src=x onerror="alert(1)"><script>alert(2)</script>';
    await page.route("**/api/events", (route) => route.fulfill({
      contentType: "text/event-stream",
      body: "event: whole\ndata: " + JSON.stringify({
        health: { leads: true },
        jobs: [{ job: evil, name: evil, state: "running", reason: evil, step: 1, steps: 2, metrics: null, samples_per_second: 0, workers: 1, submitted_unix_ms: 1 }],
        nodes: [],
      }) + "\n\n",
    }));
    await page.reload();
    await page.getByText("<img src=x").first().waitFor();
    assert.equal(await page.locator("main img, main script").count(), 0);
    await close(page);
  },
  async "nodes are listed"() {
    const page = await open({ viewport: { width: 1280, height: 700 } }, "/#/nodes");
    await page.getByRole("table", { name: "Nodes" }).getByText("ready").first().waitFor();
    assert.equal(await page.getByRole("link", { name: "Nodes" }).getAttribute("aria-current"), "page");
    await shot(page, "nodes");
    await close(page);
  },
  async "at 360 px all is there and nothing runs out sideways"() {
    for (const [path, name] of [["", "jobs"], ["/#/jobs/" + job, "job"], ["/#/nodes", "nodes"]]) {
      const page = await open({ viewport: { width: 360, height: 740 }, colorScheme: name === "job" ? "light" : "dark" }, path);
        await live(page);
      await page.getByText(job).first().waitFor();
      await page.waitForTimeout(name === "job" ? 1500 : 200);
      assert.ok(await sideways(page) <= 0, `${name} runs out by ${await sideways(page)} px`);
      await shot(page, "narrow-" + name);
      await close(page);
    }
  },
  async "everything that can be used has a name"() {
    const page = await open({ viewport: { width: 1280, height: 900 } }, "/#/jobs/" + job);
    await page.getByRole("table", { name: "Members" }).waitFor();
    const nameless = await page.evaluate(() => [...document.querySelectorAll("a, button, input, select, canvas, progress, table, [tabindex='0']")]
      .filter((e) => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML));
    assert.deepEqual(nameless, []);
    await close(page);
  },
};

const only = process.env.ELASTIC_FLOW;
for (const [name, flow] of Object.entries(token ? wayIn : breakDir ? aBreak : flows)) {
  if (only && !name.includes(only)) continue;
  const begun = Date.now();
  try {
    await flow();
    console.log(`passed: ${name} (${Date.now() - begun} ms)`);
  } catch (error) {
    console.log(`failed: ${name}: ${error.stack}`);
    process.exitCode = 1;
  }
}
await browser.close();
