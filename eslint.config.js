import js from '@eslint/js'
import { defineConfig } from 'eslint/config'
import tseslint from 'typescript-eslint'

/** Imports go one way: api → shared ← wa-worker, scripts → shared. */
const oneWay = (files, forbidden, message) => ({
  files,
  rules: {
    'no-restricted-imports': ['error', { patterns: [{ regex: forbidden, message }], paths: [] }],
  },
})

export default defineConfig(
  { ignores: ['dist/', 'node_modules/', '.data/', '.tap/', 'logs/'] },
  js.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      eqeqeq: ['error', 'always'],
      'no-console': 'error',
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      // Fastify plugins and routes are async by contract, also when they await nothing.
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true },
      ],
    },
  },
  {
    files: ['**/*.js', '**/*.mjs', '**/*.cjs'],
    languageOptions: {
      globals: { process: 'readonly', console: 'readonly', module: 'readonly', URL: 'readonly' },
    },
  },
  oneWay(
    ['api/**/*.ts'],
    '(^|/)(wa-worker|scripts)/|^whatsapp-web\\.js$|^puppeteer',
    'The API never touches a WhatsApp client: it writes rows.',
  ),
  oneWay(
    ['wa-worker/**/*.ts'],
    '(^|/)(api|scripts)/|^fastify|^@fastify/',
    'The worker speaks to the API through tables only.',
  ),
  oneWay(
    ['shared/**/*.ts'],
    '(^|/)(api|wa-worker|scripts)/|^fastify|^@fastify/|^whatsapp-web\\.js$|^puppeteer',
    'shared knows neither process, neither Fastify nor whatsapp-web.js.',
  ),
  {
    files: ['scripts/**'],
    rules: { 'no-console': 'off' },
  },
  {
    // tap takes an array in a pattern as the beginning of another: an empty one matches them all.
    files: ['**/test/**/*.ts', 'scripts/e2e/**/*.ts'],
    rules: {
      'no-restricted-syntax': [
        'error',
        {
          selector:
            'CallExpression[callee.property.name=/^(match|has|hasStrict)$/] > ' +
            ':matches(ObjectExpression, ArrayExpression).arguments:matches(' +
            'ArrayExpression[elements.length=0], :has(ArrayExpression[elements.length=0]))',
          message: 'An empty array matches any array: use strictSame.',
        },
      ],
    },
  },
)
